// The API key: in this tab's session and nowhere else, never in an address.

const KEY = "fourfold.key";
let caller = null; // what the gateway says of the key: id, name, scopes

export const key = () => sessionStorage.getItem(KEY);
export const who = () => caller;
export const may = (scope) => caller !== null && (caller.scopes.includes(scope) || caller.scopes.includes("admin"));

export function enter(secret, description) {
  sessionStorage.setItem(KEY, secret);
  caller = description;
}

export function describe(description) {
  caller = description;
}

export function leave() {
  sessionStorage.removeItem(KEY);
  caller = null;
}

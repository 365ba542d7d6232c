// Pasted text or a file → a request's accounts: JSON of any of the forms, or a table with a column for each member.

/**
 * `{asked, kind}`: the members of a ScoreRequest, and whether the text was an "account", a "list", a whole "request"
 * or a "table". Throws an Error that says what cannot be read.
 */
export function readAccounts(text) {
  const given = text.trim();
  if (!given) throw new Error("There is nothing to score yet: paste an account, or choose an example.");
  if (!/^[[{"]/.test(given) || /^"[^"]*"\s*[,;\t]/.test(given)) return { asked: { accounts: table(given) }, kind: "table" };
  const value = parse(given);
  if (Array.isArray(value)) return { asked: { accounts: value }, kind: "list" };
  if (typeof value !== "object") throw new Error("This is no account: it should be a JSON object, or a list of them.");
  if ("accounts" in value) return { asked: value, kind: "request" };
  return { asked: { accounts: [value] }, kind: "account" };
}

/** What to call an account on the page. */
export const nameOf = (account, row) => String(account.screen_name ?? account.username ?? account.acct ?? account.handle ?? account.name ?? identity(account) ?? `account ${row + 1}`);

/** The id that edges name an account by, as the service reads it. */
export function identity(account) {
  const found = account.id_str ?? account.id ?? account.did ?? account.acct ?? account.handle;
  return found === undefined || found === null ? null : String(found);
}

function parse(text) {
  try {
    // An id of more digits than a number holds stays what it was, as a text.
    return JSON.parse(text, (_, value, context) => (Number.isInteger(value) && !Number.isSafeInteger(value) && context ? context.source : value));
  } catch (error) {
    throw new Error(`This is not JSON: ${error.message}`);
  }
}

/** Rows of CSV as objects. A column `a.b` becomes the member b of a; an empty cell says nothing. */
function table(text) {
  const first = text.slice(0, text.search(/\r?\n|$/));
  const separator = [",", ";", "\t"].reduce((best, one) => (first.split(one).length > first.split(best).length ? one : best));
  const [names, ...rows] = cells(text, separator);
  if (names.length < 2 || rows.length === 0) throw new Error("This is neither JSON nor a table: a table has a line of column names, then a line for each account.");
  return rows.map((row, number) => {
    if (row.length > names.length) throw new Error(`Line ${number + 2} of the table has ${row.length} cells; its header has ${names.length}.`);
    const account = {};
    row.forEach((cell, column) => cell !== "" && put(account, names[column].trim().split("."), cell));
    return account;
  });
}

function put(object, [name, ...rest], value) {
  if (rest.length === 0) Object.defineProperty(object, name, { value, enumerable: true, writable: true, configurable: true });
  else {
    if (!Object.hasOwn(object, name)) put(object, [name], {});
    if (typeof object[name] === "object") put(object[name], rest, value);
  }
}

/** RFC 4180: quoted cells may hold separators, line ends and doubled quotes. */
function cells(text, separator) {
  const rows = [[]];
  let cell = "";
  let quoted = false;
  for (let at = 0; at < text.length; at++) {
    const letter = text[at];
    if (quoted) {
      if (letter === '"' && text[at + 1] === '"') cell += text[++at];
      else if (letter === '"') quoted = false;
      else cell += letter;
    } else if (letter === '"' && cell === "") quoted = true;
    else if (letter === separator) {
      rows.at(-1).push(cell);
      cell = "";
    } else if (letter === "\n") {
      rows.at(-1).push(cell.replace(/\r$/, ""));
      rows.push([]);
      cell = "";
    } else cell += letter;
  }
  if (quoted) throw new Error("A quoted cell of the table does not end.");
  rows.at(-1).push(cell.replace(/\r$/, ""));
  return rows.filter((row) => row.length > 1 || row[0] !== "");
}

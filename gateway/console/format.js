// Numbers, times and sizes as people read them.

/** Four significant digits; a dash for nothing. */
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size < 1e-12) return "0"; // what is left of a rounding
  return size !== 0 && (size < 1e-4 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

/** "0.751 (0.701 to 0.806)" */
export const interval = ({ value, low, high }) =>
  low === null || low === undefined ? number(value) : `${number(value)} (${number(low)} to ${number(high)})`;

export function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (size >= 1024 && power < units.length - 1) [size, power] = [size / 1024, power + 1];
  return `${power ? size.toFixed(size < 10 ? 1 : 0) : size} ${units[power]}`;
}

export function seconds(duration) {
  if (duration === null || duration === undefined) return "–";
  if (duration < 60) return `${duration.toFixed(duration < 10 ? 1 : 0)} s`;
  const whole = Math.round(duration);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** Local date and time of a Unix time or an ISO string. */
export function when(time) {
  if (time === null || time === undefined) return "–";
  const date = new Date(typeof time === "number" ? time * 1000 : time);
  return date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

/** "3 min ago"; dates beyond a day. */
export function ago(time) {
  const passed = Date.now() / 1000 - time;
  if (passed < 5) return "just now";
  if (passed < 3600) return `${passed < 60 ? `${Math.floor(passed)} s` : `${Math.floor(passed / 60)} min`} ago`;
  return passed < 86400 ? `${Math.floor(passed / 3600)} h ago` : when(time);
}

/** "images_per_epoch" → "Images per epoch" */
export const words = (name) => (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll(/[_-]/g, " ");

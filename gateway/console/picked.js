// The files that a person chose or dropped, with the paths that they have in a data set.

/** Make `place` one where things are dropped: it shows when they are over it, and `taken(transfer)` gets what falls. */
export function dropZone(place, taken) {
  const over = (event) => {
    event.preventDefault();
    place.classList.add("over");
  };
  place.addEventListener("dragenter", over);
  place.addEventListener("dragover", over);
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    taken(event.dataTransfer);
  });
}

/** [{path, file}] of file inputs: paths are relative to the chosen folder, hidden files are left out. */
export function chosen(inputs) {
  const files = inputs.flatMap((input) => [...input.files]);
  return kept(files.map((file) => ({ path: file.webkitRelativePath.split("/").slice(1).join("/") || file.name, file })));
}

/** The same of a drop, with folders walked through. One folder alone is the data set; its name is no part of the paths. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const top = entries.length === 1 && entries[0].isDirectory ? await children(entries[0]) : entries;
  return kept((await Promise.all(top.map((entry) => walk(entry, "")))).flat());
}

async function walk(entry, folder) {
  const path = folder + entry.name;
  if (!entry.isDirectory) return [{ path, file: await new Promise((done, failed) => entry.file(done, failed)) }];
  return (await Promise.all((await children(entry)).map((child) => walk(child, `${path}/`)))).flat();
}

// A directory is read a hundred entries at a time, until nothing more comes.
async function children(directory) {
  const reader = directory.createReader();
  const found = [];
  for (;;) {
    const part = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (part.length === 0) return found;
    found.push(...part);
  }
}

const kept = (files) => files.filter(({ path }) => !path.split("/").some((part) => part.startsWith(".")));

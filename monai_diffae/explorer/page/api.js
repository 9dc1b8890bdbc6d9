// Requests to the server. Each browser window has a name, so that the server drops what this window no longer needs.

const WINDOW = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");

async function answer(path, options = {}) {
  const response = await fetch(path, options);
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw new Error(body.detail || `the server answered ${response.status}`);
  }
  return response;
}

function posted(recipe, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(recipe), signal };
}

/** A header in JSON, then float32 arrays: {header, arrays: {name: {shape, values}}}; null if nothing was sent. */
async function unpacked(response) {
  if (response.status === 204) return null; // a newer request replaced this one
  const buffer = await response.arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = {};
  for (const [name, { shape, offset }] of Object.entries(header.arrays)) {
    const count = shape.reduce((a, b) => a * b, 1);
    arrays[name] = { shape, values: new Float32Array(buffer, 4 + length + offset, count) };
  }
  return { header, arrays };
}

export const overview = async () => (await answer("api/overview")).json();
export const outliers = async () => (await answer("api/outliers")).json();
export const about = async (row) => (await answer(`api/cases/${row}`)).json();
export const scan = async (row) => unpacked(await answer(`api/cases/${row}/scan`));
export const progress = async () => (await (await answer("api/progress")).json()).text;
export const thumbnail = (row) => `api/cases/${row}/thumbnail.png`;
export const image = async (recipe, quality, signal) =>
  unpacked(await answer(`api/image?window=${WINDOW}&quality=${quality}`, posted(recipe, signal)));
export const calls = async (recipe) => (await answer("api/calls", posted(recipe))).json();
export const samples = async (count, seed) =>
  unpacked(await answer(`api/samples?count=${count}&seed=${seed}&window=${WINDOW}`));
export const sampleCalls = async (count, seed) =>
  (await answer(`api/samples/calls?count=${count}&seed=${seed}`)).json();

/** Let the browser save the image of a recipe. */
export async function save(recipe) {
  const response = await answer(`api/export`, posted(recipe));
  const name = /filename="(.+)"/.exec(response.headers.get("Content-Disposition"))[1];
  const link = Object.assign(document.createElement("a"), {
    href: URL.createObjectURL(await response.blob()),
    download: name,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  return name;
}

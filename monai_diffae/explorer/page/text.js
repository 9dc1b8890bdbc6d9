// Numbers and names as text that a person reads; numberText comes from case_colours.js.

export const number = (value) => numberText(value);

/** The value of a label. */
export const labelText = (value) => (typeof value === "number" ? number(value) : String(value));

export const signed = (value) => `${value > 0 ? "+" : ""}${value.toFixed(1)}`;

export const percent = (share) => `${(100 * share).toFixed(share < 0.095 ? 1 : 0)} %`;

/** An id in little room: without the suffix of a scan, and shortened in the middle, as ids differ at their ends. */
export function shortened(id, length = 11) {
  const name = id.replace(/\.(nii(\.gz)?|nrrd|mha|mhd|dcm|png|jpe?g|tiff?)$/i, "");
  if (name.length <= length) return name;
  const head = Math.floor((length - 1) / 2) - 1;
  return `${name.slice(0, head)}\u2026${name.slice(name.length - (length - 1 - head))}`;
}

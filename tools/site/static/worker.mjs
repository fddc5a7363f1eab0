// Python in a worker, so that the page stays responsive: loads Pyodide, then answers the page's requests in order.
import { loadPyodide } from "./pyodide/pyodide.mjs";

const here = (path) => new URL(path, import.meta.url).href;
const START = `
import os, sys
sys.path.insert(0, "/site")
os.environ["LABKIT_ROOT"] = "/site"
os.environ["LABKIT_RUNS"] = "/none"
import answers
answers.start()
answers.reply
`;

async function start(wheel) {
  const packed = fetch(here("python.zip")).then((response) => response.arrayBuffer());
  const python = await loadPyodide({ indexURL: here("pyodide/") });
  await python.loadPackage(here(`pyodide/${wheel}`), { checkIntegrity: false, messageCallback: () => {} });
  python.unpackArchive(await packed, "zip", { extractDir: "/site" });
  return python.runPython(START);
}

let python;
self.onmessage = async ({ data }) => {
  try {
    python ??= start(data.wheel);
    const reply = (await python)(JSON.stringify(data));
    self.postMessage({ number: data.number, kind: data.kind, reply });
  } catch (error) {
    self.postMessage({ number: data.number, kind: data.kind, failure: String(error) });
  }
};

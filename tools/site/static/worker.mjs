// Python in a worker, so that the page stays responsive: loads Pyodide, then answers the page's requests in order.
import { loadPyodide } from "./pyodide/pyodide.mjs";

const here = (path) => new URL(path, import.meta.url).href;
const START = `
import answers
answers.start()
answers.reply
`;

// Python's memory after its start, saved by the build: loading it takes less time than starting anew.
async function memory() {
  const { body } = await fetch(here("pyodide/memory.bin"));
  return new Response(body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function start() {
  const packed = fetch(here("python.zip")).then((response) => response.arrayBuffer());
  const python = await loadPyodide({ indexURL: here("pyodide/"), _loadSnapshot: memory() });
  python.unpackArchive(await packed, "zip", { extractDir: "/site" });
  return python.runPython(START);
}

const python = start();
self.onmessage = async ({ data }) => {
  try {
    const reply = (await python)(JSON.stringify(data));
    self.postMessage({ number: data.number, kind: data.kind, reply });
  } catch (error) {
    self.postMessage({ number: data.number, kind: data.kind, failure: String(error) });
  }
};

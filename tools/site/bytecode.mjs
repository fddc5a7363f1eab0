// node bytecode.mjs PYODIDE SOURCES.zip COMPILED.zip: compiles the Python files by the Python that will run them, which
// saves a page about a second of compiling at each start.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

process.on("uncaughtException", (error) => {
  console.error(error.message); // without the minified line that Node.js would show
  process.exit(1);
});
const [folder, sources, compiled] = process.argv.slice(2).map((name) => path.resolve(name));
const { loadPyodide } = await import(pathToFileURL(path.join(folder, "pyodide.mjs")).href);
const python = await loadPyodide({ indexURL: folder + path.sep });
python.unpackArchive(new Uint8Array(fs.readFileSync(sources)), "zip", { extractDir: "/site" });
python.runPython(`
import compileall, pathlib, py_compile, zipfile
site = pathlib.Path("/site")
# The date of a file would be in its bytecode, and equal sources would not be equal files.
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
if not compileall.compile_dir(site, legacy=True, quiet=1, stripdir="/site", invalidation_mode=mode):
    raise SystemExit("a file cannot be compiled")
with zipfile.ZipFile("/compiled.zip", "w", zipfile.ZIP_DEFLATED) as packed:
    for file in sorted(site.rglob("*")):
        if file.is_file() and file.suffix != ".py":
            packed.writestr(zipfile.ZipInfo(str(file.relative_to(site))), file.read_bytes(), zipfile.ZIP_DEFLATED)
`);
fs.writeFileSync(compiled, python.FS.readFile("/compiled.zip"));

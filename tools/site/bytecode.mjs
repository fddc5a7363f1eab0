// node bytecode.mjs PYODIDE COMPILED.zip ARCHIVE...: prepares what would cost a page seconds at each start. The archives'
// files and Python's own library are compiled by the Python that will run them, and the memory of that Python is saved
// as it is once it has started and imported the modules of that library that an answer needs.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import zlib from "node:zlib";

process.on("uncaughtException", (error) => {
  console.error(error.message); // without the minified line that Node.js would show
  process.exit(1);
});
const [folder, compiled, ...archives] = process.argv.slice(2).map((name) => path.resolve(name));
const { loadPyodide } = await import(pathToFileURL(path.join(folder, "pyodide.mjs")).href);
const library = path.join(folder, "python_stdlib.zip");
const options = { indexURL: folder + path.sep };
const python = await loadPyodide(options);
const unpack = (archive, extractDir) => python.unpackArchive(new Uint8Array(fs.readFileSync(archive)), "zip", { extractDir });
unpack(library, "/library");
archives.forEach((archive) => unpack(archive, "/site"));
const modules = python.runPython(`
import compileall, json, pathlib, py_compile, sys, zipfile
for folder in (pathlib.Path("/library"), pathlib.Path("/site")):
    # The date of a file would be in its bytecode, and equal sources would not be equal files.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(folder, legacy=True, quiet=1, stripdir=folder, invalidation_mode=mode):
        raise SystemExit(f"a file in {folder} cannot be compiled")
    with zipfile.ZipFile(f"{folder}.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix != ".py":
                packed.writestr(zipfile.ZipInfo(str(file.relative_to(folder))), file.read_bytes(), zipfile.ZIP_DEFLATED)
sys.path.insert(0, "/site")
import answers
answers.start()
for page in ("calculator", "selector"):
    answers.shown(page, {})
json.dumps([name for name in sys.modules if name.partition(".")[0] in sys.stdlib_module_names])
`);
fs.writeFileSync(compiled, python.FS.readFile("/site.zip"));
fs.writeFileSync(library, python.FS.readFile("/library.zip"));
const started = await loadPyodide({ ...options, _makeSnapshot: true });
started.runPython(`import importlib\nfor name in ${modules}: importlib.import_module(name)`);
fs.writeFileSync(path.join(folder, "memory.bin"), zlib.gzipSync(started.makeMemorySnapshot(), { level: 9 }));

// node prepare.mjs PYODIDE COMPILED.zip ARCHIVE...: does once what would take each page seconds at its start. Compiles
// the archives' files and Python's standard library with the Python that runs them. Saves that Python's memory after its
// start, with the modules that an answer needs.
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
const unpack = (to, archive, extractDir) => to.unpackArchive(new Uint8Array(fs.readFileSync(archive)), "zip", { extractDir });
unpack(python, library, "/library");
archives.forEach((archive) => unpack(python, archive, "/site"));
const modules = python.runPython(`
import compileall, pathlib, py_compile, sys, zipfile
for folder in ("/library", "/site"):
    # The date of a file would be in its bytecode, and equal sources would not be equal files.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(folder, legacy=True, quiet=1, stripdir=folder, invalidation_mode=mode):
        raise SystemExit(f"a file in {folder} cannot be compiled")
    with zipfile.ZipFile(f"{folder}.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(pathlib.Path(folder).rglob("*")):
            if file.is_file() and file.suffix != ".py":
                packed.writestr(zipfile.ZipInfo(str(file.relative_to(folder))), file.read_bytes(), zipfile.ZIP_DEFLATED)
sys.path.insert(0, "/site")
import answers
answers.start()
for page in ("calculator", "selector"):
    answers.shown(page, {})
# A saved memory cannot hold a compiled library, so pydantic and the modules that need it are imported by the page.
saved = {*sys.stdlib_module_names, "annotated_types", "jinja2", "markupsafe", "typing_extensions", "yaml"}
repr([name for name in sys.modules if name.partition(".")[0] in saved])
`);
fs.writeFileSync(compiled, python.FS.readFile("/site.zip"));
fs.writeFileSync(library, python.FS.readFile("/library.zip"));
const started = await loadPyodide({ ...options, _makeSnapshot: true });
unpack(started, compiled, "/site");
started.runPython(`
import importlib, sys
sys.path.insert(0, "/site")
for name in ${modules}:
    importlib.import_module(name)
`);
fs.writeFileSync(path.join(folder, "memory.bin"), zlib.gzipSync(started.makeMemorySnapshot(), { level: 9 }));

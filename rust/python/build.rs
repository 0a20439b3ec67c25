//! Tells the recorder's layout the minor version of CPython, and refuses every other Python before anything is compiled.

use pyo3_build_config::{PythonImplementation, PythonVersion};

fn main() {
    pyo3_build_config::use_pyo3_cfgs();
    let python = pyo3_build_config::get();
    let PythonVersion { major, minor } = python.version();
    let free_threaded = python.target_abi().kind().is_free_threaded();
    let is_cpython = matches!(python.implementation(), PythonImplementation::CPython);
    if !is_cpython || free_threaded || major != 3 || !(11..=13).contains(&minor) {
        let build = if free_threaded { ", free-threaded" } else { "" };
        eprintln!(
            "cwm-core supports CPython 3.11 to 3.13 with the GIL; this is {} {major}.{minor}{build}: its recorder reads \
             the interpreter's frames where they lie, and knows no other layout",
            python.implementation(),
        );
        std::process::exit(1);
    }
}

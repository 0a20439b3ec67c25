//! Tells the recorder's layout the minor version of CPython, and refuses other Pythons before anything is compiled.

use pyo3_build_config::{PythonImplementation, PythonVersion};

fn main() {
    pyo3_build_config::use_pyo3_cfgs();
    let python = pyo3_build_config::get();
    let PythonVersion { major, minor } = python.version();
    if !matches!(python.implementation(), PythonImplementation::CPython) || (major, minor) < (3, 11) {
        let implementation = python.implementation();
        eprintln!("cwm-core supports CPython 3.11 and later; this is {implementation} {major}.{minor}");
        std::process::exit(1);
    }
    println!("cargo:rustc-check-cfg=cfg(known_layout)");
    let is_64_bit = std::env::var("CARGO_CFG_TARGET_POINTER_WIDTH").is_ok_and(|width| width == "64");
    if (11..=15).contains(&minor) && is_64_bit && !python.target_abi().kind().is_free_threaded() {
        println!("cargo:rustc-cfg=known_layout");
    }
}

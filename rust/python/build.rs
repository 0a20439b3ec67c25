fn main() {
    // The recorder's layout depends on the minor version of CPython.
    pyo3_build_config::use_pyo3_cfgs();
}

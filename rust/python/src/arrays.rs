//! Loading NumPy's C interface with errors instead of panics.

use std::sync::OnceLock;
use std::thread;

use numpy::{PyArray1, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

static IS_LOADED: OnceLock<()> = OnceLock::new();

/// Loads NumPy's C interface. Every constructor of a class whose methods take or return arrays calls this first.
///
/// The `numpy` crate loads the interface on the first use of an array. It runs Python code for that, and panics if that
/// code raises an exception, such as KeyboardInterrupt. This function first imports NumPy, which may raise. The rest
/// runs on a separate thread, where Python handles no signals.
pub fn load(py: Python<'_>) -> PyResult<()> {
    if IS_LOADED.get().is_some() {
        return Ok(());
    }
    py.import("numpy")?;
    let loaded = py.detach(|| thread::spawn(|| Python::attach(use_arrays)).join());
    match loaded {
        Ok(result) => result?,
        Err(_) => {
            return Err(PyImportError::new_err(
                "cannot load the C interface of NumPy; install another version of NumPy",
            ));
        }
    }
    let _ = IS_LOADED.set(());
    Ok(())
}

/// Uses both parts of the interface: arrays, and the tracking of borrows.
fn use_arrays(py: Python<'_>) -> PyResult<()> {
    let array = PyArray1::from_slice(py, &[0i32]);
    let borrowed = array
        .try_readonly()
        .map_err(|error| PyImportError::new_err(error.to_string()))?;
    match borrowed.len() {
        1 => Ok(()),
        length => Err(PyImportError::new_err(format!(
            "NumPy made an array of {length} elements, not 1"
        ))),
    }
}

//! NumPy's C interface, loaded where its failure is an error and not a panic.

use std::sync::OnceLock;
use std::thread;

use numpy::{PyArray1, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

static IS_LOADED: OnceLock<()> = OnceLock::new();

/// Loads NumPy's C interface. Every constructor of a class whose methods take or return arrays calls this first.
///
/// The `numpy` crate loads the interface when the first array is made or looked at, by running Python code, and panics
/// if that code raises: as it does when Ctrl-C is pressed at that moment. Here NumPy is imported first, which may raise;
/// the rest runs in a thread of its own, where Python handles no signals.
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
                "NumPy's C interface cannot be loaded; install another NumPy",
            ));
        }
    }
    let _ = IS_LOADED.set(());
    Ok(())
}

/// Touches both parts of the interface: arrays, and the record of who has borrowed them.
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

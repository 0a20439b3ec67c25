//! Exception classes of the package. Native code raises them, and `cwm_core.trace` imports only this module.

use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyType};

static CWM_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static DAMAGED_FILE_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// Returns the base class of the package's exceptions.
fn cwm_error(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    let class = CWM_ERROR.get_or_try_init(py, || {
        let bases = (py.get_type::<PyException>(),);
        class(
            py,
            "CwmError",
            bases,
            "Base class of the exceptions that cwm_core defines.",
        )
    })?;
    Ok(class.bind(py).clone())
}

/// Returns the class for damaged content, as opposed to invalid arguments.
fn damaged_file_error(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    let class = DAMAGED_FILE_ERROR.get_or_try_init(py, || {
        let bases = (cwm_error(py)?, py.get_type::<PyValueError>());
        let doc = "The content of a file is damaged, truncated, or of another format or version than expected.";
        class(py, "DamagedFileError", bases, doc)
    })?;
    Ok(class.bind(py).clone())
}

/// Makes a class as a `class` statement does: PyO3 supports only one base class.
fn class<'py>(py: Python<'py>, name: &str, bases: impl IntoPyObject<'py>, doc: &str) -> PyResult<Py<PyType>> {
    let namespace = [("__doc__", doc), ("__module__", "cwm_core")].into_py_dict(py)?;
    let made = py.get_type::<PyType>().call1((name, bases, namespace))?;
    Ok(made.cast_into::<PyType>()?.unbind())
}

/// Makes a `DamagedFileError`.
pub fn damaged(message: impl Into<String>) -> PyErr {
    let message = message.into();
    Python::attach(|py| match damaged_file_error(py) {
        Ok(class) => PyErr::from_type(class, (message,)),
        Err(error) => error,
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("CwmError", cwm_error(m.py())?)?;
    m.add("DamagedFileError", damaged_file_error(m.py())?)
}

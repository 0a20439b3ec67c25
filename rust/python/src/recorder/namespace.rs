//! Variables in the namespace of a module or class body.

use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rustc_hash::FxHashMap;

use cwm_trace::Trace;

use super::leaf::push_unicode;

/// Keys of namespaces and the name IDs of their variables. The keys are held so that no other object takes their
/// addresses. Keys of a subclass of `str` are not held, because a program could observe when they die.
#[derive(Default)]
pub struct Keys(FxHashMap<*mut ffi::PyObject, (Py<PyAny>, Option<u32>)>);

impl Keys {
    /// Drops the IDs of an earlier trace.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the variables in a namespace, in its order, by name ID. Skips names that begin with `__`. A namespace
    /// that is not a dict is asked for its items; if that raises an `Exception`, the result is empty.
    ///
    pub fn read<'py>(
        &mut self,
        namespace: Bound<'py, PyAny>,
        trace: &mut Trace,
    ) -> PyResult<Vec<(u32, Bound<'py, PyAny>)>> {
        let py = namespace.py();
        let mut values: Vec<(u32, Bound<'py, PyAny>)> = Vec::new();
        let dict = dict_of(namespace)?;
        // SAFETY: `dict` is held, and each pair is owned before other code runs.
        unsafe {
            let namespace = dict.as_ptr();
            let (mut at, mut key, mut value) = (0, std::ptr::null_mut(), std::ptr::null_mut());
            while ffi::PyDict_Next(namespace, &mut at, &mut key, &mut value) != 0 {
                let Some(name) = self.name(py, key, trace) else {
                    continue;
                };
                // Only keys of a subclass of `str` can repeat a name.
                let exact = ffi::Py_TYPE(key) == &raw mut ffi::PyUnicode_Type;
                if exact || values.iter().all(|(other, _)| *other != name) {
                    values.push((name, Bound::from_borrowed_ptr(py, value)));
                }
            }
        }
        Ok(values)
    }

    /// Returns the ID of a key's name; `None` if the key does not name a variable.
    unsafe fn name(&mut self, py: Python<'_>, key: *mut ffi::PyObject, trace: &mut Trace) -> Option<u32> {
        if let Some((_, name)) = self.0.get(&key) {
            return *name;
        }
        // SAFETY: the key is alive, and its type is checked before it is read as a string.
        unsafe {
            if ffi::PyUnicode_Check(key) == 0 {
                return None;
            }
            let mut name = Vec::new();
            push_unicode(key, &mut name);
            let id = (!name.starts_with(b"__")).then(|| trace.intern_name(&name));
            if ffi::PyUnicode_CheckExact(key) != 0 {
                self.0.insert(key, (Bound::from_borrowed_ptr(py, key).unbind(), id));
            }
            id
        }
    }
}

/// Returns a mapping as a dict: itself, or a copy; if copying raises an `Exception`, an empty dict.
pub fn dict_of(mapping: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyDict>> {
    let mapping = match mapping.cast_into::<PyDict>() {
        Ok(dict) => return Ok(dict),
        Err(other) => other.into_inner(),
    };
    match copy(&mapping) {
        Err(error) if !error.is_instance_of::<PyException>(mapping.py()) => Err(error),
        copied => Ok(copied.unwrap_or_else(|_| PyDict::new(mapping.py()))),
    }
}

fn copy<'py>(mapping: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(mapping.py());
    dict.as_any().call_method1("update", (mapping,))?;
    Ok(dict)
}

//! Attributes of plain instances, in slots and in the instance's dict, read without running Python code.

use std::ffi::c_int;

use pyo3::exceptions::PyAttributeError;
use pyo3::ffi;
use pyo3::prelude::*;

use super::leaf::{has_repr_of, owned, push_unicode};

/// `Py_T_OBJECT_EX`, the member type of a slot made by `__slots__`.
const OBJECT_SLOT: c_int = 16;

/// Returns whether `value` can have attributes and is an instance of a Python class without its own `__repr__`.
///
/// # Safety
/// `value` must be alive, and the GIL must be held.
pub unsafe fn shows(value: *mut ffi::PyObject) -> bool {
    // SAFETY: upheld by the caller; the type lives as long as its instance.
    unsafe {
        let class = ffi::Py_TYPE(value);
        has_repr_of(class, &raw mut ffi::PyBaseObject_Type)
            && ffi::PyType_HasFeature(class, ffi::Py_TPFLAGS_HEAPTYPE) != 0
            && ((*class).tp_dictoffset != 0 || !slots(class).is_empty())
    }
}

/// Attribute names and values, in order.
pub type Attributes = (Vec<Vec<u8>>, Vec<Py<PyAny>>);

/// Returns up to `reach` attributes: slots first, starting with those of base classes, then the instance's dict.
///
/// # Safety
/// [`shows`] must accept `value`, and the GIL must be held.
pub unsafe fn of(py: Python<'_>, value: *mut ffi::PyObject, reach: usize) -> PyResult<Attributes> {
    let (mut names, mut values) = (Vec::new(), Vec::new());
    // SAFETY: the offsets are those that the class defines for its instances. Dict entries are read while no code runs.
    unsafe {
        let class = ffi::Py_TYPE(value);
        for (name, offset) in slots(class) {
            let slot = *value.byte_offset(offset).cast::<*mut ffi::PyObject>();
            if !slot.is_null() && values.len() < reach {
                names.push(name);
                values.push(Bound::from_borrowed_ptr(py, slot).unbind());
            }
        }
        if (*class).tp_dictoffset == 0 {
            return Ok((names, values));
        }
        let dict = match owned(py, ffi::PyObject_GenericGetDict(value, std::ptr::null_mut())) {
            Ok(dict) => dict,
            Err(error) if error.is_instance_of::<PyAttributeError>(py) => return Ok((names, values)),
            Err(error) => return Err(error),
        };
        let (mut at, mut key, mut item) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        while values.len() < reach && ffi::PyDict_Next(dict.as_ptr(), &mut at, &mut key, &mut item) != 0 {
            if ffi::PyUnicode_Check(key) != 0 {
                let mut name = Vec::new();
                push_unicode(key, &mut name);
                names.push(name);
                values.push(Bound::from_borrowed_ptr(py, item).unbind());
            }
        }
    }
    Ok((names, values))
}

/// Returns the names and instance offsets of the slots that a class and its bases define, base classes first.
unsafe fn slots(class: *mut ffi::PyTypeObject) -> Vec<(Vec<u8>, isize)> {
    let mut found = Vec::new();
    // SAFETY: a ready type has a tuple of its bases, and a member without a name ends a type's members.
    unsafe {
        let bases = (*class).tp_mro;
        for i in (0..ffi::PyTuple_GET_SIZE(bases)).rev() {
            let base = ffi::PyTuple_GET_ITEM(bases, i).cast::<ffi::PyTypeObject>();
            let mut member = (*base).tp_members;
            if ffi::PyType_HasFeature(base, ffi::Py_TPFLAGS_HEAPTYPE) == 0 || member.is_null() {
                continue;
            }
            while !(*member).name.is_null() {
                if (*member).type_code == OBJECT_SLOT {
                    let name = std::ffi::CStr::from_ptr((*member).name).to_bytes().to_vec();
                    found.push((name, (*member).offset));
                }
                member = member.add(1);
            }
        }
    }
    found
}

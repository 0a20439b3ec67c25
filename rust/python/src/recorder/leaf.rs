//! Leaves of the walk other than scalars. Their `repr` is written natively if its text follows from the object alone.

use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyModule, PyString, PyType};

use super::scalar::Scalar;
use super::signals::raised_by_handler;

/// Class of modules' specs.
static SPEC: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// The import system, and its function that formats modules.
static MODULE_REPR: PyOnceLock<(Py<PyModule>, Py<PyAny>)> = PyOnceLock::new();

/// Looks up what is needed later, when no Python code may run.
pub fn prepare(py: Python<'_>) -> PyResult<()> {
    let bootstrap = py.import("importlib._bootstrap")?;
    let function = bootstrap.getattr(intern!(py, "_module_repr"))?;
    MODULE_REPR.get_or_init(py, || (bootstrap.unbind(), function.unbind()));
    SPEC.import(py, "importlib.machinery", "ModuleSpec").map(drop)
}

/// Returns whether CPython's own function formats modules. A host may replace that function to hide paths.
fn writes_modules_as_cpython(py: Python<'_>) -> Option<bool> {
    let (bootstrap, original) = MODULE_REPR.get(py)?;
    let current = bootstrap.bind(py).getattr(intern!(py, "_module_repr")).ok()?;
    Some(current.is(original))
}

/// Returns whether the `repr` of a value may run Python code.
///
/// # Safety
/// `value` must be alive, and the GIL must be held.
pub unsafe fn runs_code(value: *mut ffi::PyObject) -> bool {
    // SAFETY: upheld by the caller; only addresses of types are compared.
    unsafe {
        let kind = ffi::Py_TYPE(value);
        // Ints are absent because CPython runs signal handlers while it formats a long one.
        let native = [
            &raw mut ffi::PyUnicode_Type,
            &raw mut ffi::PyComplex_Type,
            &raw mut ffi::PyRange_Type,
            &raw mut ffi::PyFunction_Type,
            &raw mut ffi::PyType_Type,
            &raw mut ffi::PyCFunction_Type,
        ];
        !native.contains(&kind)
    }
}

/// Appends `repr(value)` without addresses; for a string, only the part that fits `room` characters. Appends `<TYPENAME
/// object>` if `repr` raises an `Exception`, and returns any other exception.
///
/// # Safety
/// `value` must be alive and stay so while Python code runs, and the GIL must be held.
pub unsafe fn write(py: Python<'_>, value: *mut ffi::PyObject, room: usize, out: &mut Vec<u8>) -> PyResult<()> {
    let first = out.len();
    // SAFETY: upheld by the caller, here and below.
    unsafe {
        if ffi::Py_TYPE(value) == &raw mut ffi::PyUnicode_Type {
            let string = shortened(py, value, room)?;
            push_unicode(owned(py, repr(string.as_ptr()))?.as_ptr(), out);
            return Ok(());
        }
        if write_native(py, value, out) {
            return Ok(());
        }
        let text = repr(value);
        if text.is_null() {
            return write_broken(py, value, out);
        }
        push_unicode(Bound::from_owned_ptr(py, text).as_ptr(), out);
    }
    remove_addresses(out, first);
    Ok(())
}

/// Returns `repr(value)`: a new reference, or null with an exception set.
unsafe fn repr(value: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the caller upholds the contract of `write`.
    unsafe {
        match (*ffi::Py_TYPE(value)).tp_repr {
            // `PyObject_Repr` itself runs signal handlers.
            Some(native) if !runs_code(value) => native(value),
            _ => ffi::PyObject_Repr(value),
        }
    }
}

/// Does the same as [`write`] if that requires no Python code. Otherwise returns `false` and writes nothing.
///
/// # Safety
/// `value` must be alive, and the GIL must be held.
pub unsafe fn write_at_once(
    py: Python<'_>,
    value: *mut ffi::PyObject,
    room: usize,
    out: &mut Vec<u8>,
) -> PyResult<bool> {
    // SAFETY: upheld by the caller.
    unsafe {
        if runs_code(value) {
            return Ok(write_native(py, value, out));
        }
        write(py, value, room, out).map(|()| true)
    }
}

/// Writes the replacement text of a value whose `repr` raised.
unsafe fn write_broken(py: Python<'_>, value: *mut ffi::PyObject, out: &mut Vec<u8>) -> PyResult<()> {
    // SAFETY: an exception is set. `value` is alive, and so is its type.
    unsafe {
        let error = PyErr::fetch(py);
        if !error.is_instance_of::<PyException>(py) || raised_by_handler(py, &error)? {
            return Err(error);
        }
        drop(error);
        let name = owned(py, ffi::PyType_GetName(ffi::Py_TYPE(value)))?;
        out.push(b'<');
        push_unicode(name.as_ptr(), out);
        out.extend_from_slice(b" object>");
    }
    Ok(())
}

/// Writes functions, modules, classes, instances without their own `__repr__`, and exceptions with scalar arguments.
/// For other values, returns `false` and writes nothing. Runs no Python code.
unsafe fn write_native(py: Python<'_>, value: *mut ffi::PyObject, out: &mut Vec<u8>) -> bool {
    let first = out.len();
    // SAFETY: `value` is alive, and its type is checked before it is read as that type.
    let written = unsafe {
        let kind = ffi::Py_TYPE(value);
        if kind == &raw mut ffi::PyFunction_Type {
            out.extend_from_slice(b"<function ");
            push_unicode((*value.cast::<ffi::PyFunctionObject>()).func_qualname, out);
            out.push(b'>');
            true
        } else if kind == &raw mut ffi::PyModule_Type {
            write_module(py, value, out).unwrap_or(false)
        } else if kind == &raw mut ffi::PyType_Type {
            write_type(py, value.cast(), b"<class '", b"'>", out)
        } else if has_repr_of(kind, &raw mut ffi::PyBaseObject_Type) {
            write_type(py, kind, b"<", b" object>", out)
        } else if has_repr_of(kind, ffi::PyExc_BaseException.cast()) {
            write_exception(value, out)
        } else {
            false
        }
    };
    // A name can look like an address.
    if written {
        remove_addresses(out, first);
    }
    written
}

/// Writes a module as `importlib._bootstrap._module_repr` does. Returns `None` and writes nothing if the module's spec
/// is not an ordinary one or if that function was replaced.
unsafe fn write_module(py: Python<'_>, module: *mut ffi::PyObject, out: &mut Vec<u8>) -> Option<bool> {
    if !writes_modules_as_cpython(py)? {
        return None;
    }
    // SAFETY: `module` is an exact module. Its spec is held while its plain attributes are read.
    unsafe {
        let spec = ffi::PyDict_GetItemWithError(ffi::PyModule_GetDict(module), intern!(py, "__spec__").as_ptr());
        let spec = Bound::from_borrowed_ptr_or_opt(py, spec)?;
        if !spec
            .get_type()
            .is(SPEC.import(py, "importlib.machinery", "ModuleSpec").ok()?)
        {
            return None;
        }
        let name = spec.getattr(intern!(py, "name")).ok()?;
        let origin = spec.getattr(intern!(py, "origin")).ok()?;
        let is_file = spec.getattr(intern!(py, "_set_fileattr")).ok()?;
        let (Scalar::Ascii(_), Scalar::Ascii(place)) = (Scalar::of(name.as_ptr())?, Scalar::of(origin.as_ptr())?)
        else {
            return None;
        };
        let is_file = is_file.cast_exact::<PyBool>().ok()?.is_true();
        out.extend_from_slice(b"<module ");
        Scalar::of(name.as_ptr())?.write(usize::MAX, out);
        if is_file {
            out.extend_from_slice(b" from ");
            Scalar::Ascii(place).write(usize::MAX, out);
        } else {
            out.extend_from_slice(b" (");
            out.extend_from_slice(place);
            out.push(b')');
        }
        out.push(b'>');
    }
    Some(true)
}

/// Returns whether `class` inherits the `__repr__` of `base` without overriding it.
///
/// # Safety
/// Both must be live classes.
pub unsafe fn has_repr_of(class: *mut ffi::PyTypeObject, base: *mut ffi::PyTypeObject) -> bool {
    // SAFETY: upheld by the caller. A class inherits the same function pointer, and these functions belong to CPython.
    unsafe { (*class).tp_repr.map(|function| function as usize) == (*base).tp_repr.map(|function| function as usize) }
}

/// Writes a class as `MODULE.NAME` between two marks. Returns `false` and writes nothing if no class statement made the
/// class or if it has another `__repr__`.
unsafe fn write_type(
    py: Python<'_>,
    class: *mut ffi::PyTypeObject,
    before: &[u8],
    after: &[u8],
    out: &mut Vec<u8>,
) -> bool {
    // SAFETY: `class` is alive. The module's name is borrowed from the dict while no code runs.
    unsafe {
        if ffi::PyType_HasFeature(class, ffi::Py_TPFLAGS_HEAPTYPE) == 0 || (*class).tp_dict.is_null() {
            return false;
        }
        let module = ffi::PyDict_GetItemWithError((*class).tp_dict, intern!(py, "__module__").as_ptr());
        if module.is_null() || ffi::PyUnicode_Check(module) == 0 {
            return false;
        }
        let begin = out.len();
        out.extend_from_slice(before);
        push_unicode(module, out);
        if &out[begin + before.len()..] == b"builtins" {
            out.truncate(begin);
            return false;
        }
        out.push(b'.');
        let Ok(name) = owned(py, ffi::PyType_GetQualName(class)) else {
            out.truncate(begin);
            return false;
        };
        push_unicode(name.as_ptr(), out);
        out.extend_from_slice(after);
    }
    true
}

/// Writes an exception as `BaseException.__repr__` does, if its arguments are scalars.
unsafe fn write_exception(exception: *mut ffi::PyObject, out: &mut Vec<u8>) -> bool {
    // SAFETY: an object with the `__repr__` of BaseException is an exception. Its arguments are a tuple, borrowed while
    // no code runs.
    unsafe {
        let arguments = (*exception.cast::<ffi::PyBaseExceptionObject>()).args;
        let count = ffi::PyTuple_GET_SIZE(arguments);
        let begin = out.len();
        let name = std::ffi::CStr::from_ptr((*ffi::Py_TYPE(exception)).tp_name).to_bytes();
        let last = memchr::memrchr(b'.', name).map_or(0, |dot| dot + 1);
        out.extend_from_slice(&name[last..]);
        out.push(b'(');
        for i in 0..count {
            if i > 0 {
                out.extend_from_slice(b", ");
            }
            match Scalar::of(ffi::PyTuple_GET_ITEM(arguments, i)) {
                Some(scalar) => scalar.write(usize::MAX, out),
                None => {
                    out.truncate(begin);
                    return false;
                }
            };
        }
        out.push(b')');
    }
    true
}

/// Returns a long string, cut so that its `repr` starts like the `repr` of the whole string.
unsafe fn shortened<'py>(py: Python<'py>, string: *mut ffi::PyObject, room: usize) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: `string` is a live string.
    unsafe {
        let length = ffi::PyUnicode_GET_LENGTH(string) as usize;
        // The choice of quotes depends on the whole string, so a string that contains a quote is not cut.
        if length <= room || has_quote(string) {
            return Ok(Bound::from_borrowed_ptr(py, string));
        }
        owned(py, ffi::PyUnicode_Substring(string, 0, room as isize))
    }
}

unsafe fn has_quote(text: *mut ffi::PyObject) -> bool {
    // SAFETY: the caller checked that `text` is a string. Its data has the size that its length and kind imply.
    unsafe {
        let length = ffi::PyUnicode_GET_LENGTH(text) as usize;
        let data = ffi::PyUnicode_DATA(text);
        match ffi::PyUnicode_KIND(text) {
            ffi::PyUnicode_1BYTE_KIND => {
                memchr::memchr(b'\'', std::slice::from_raw_parts(data.cast(), length)).is_some()
            }
            ffi::PyUnicode_2BYTE_KIND => std::slice::from_raw_parts(data.cast::<u16>(), length).contains(&0x27),
            _ => std::slice::from_raw_parts(data.cast::<u32>(), length).contains(&0x27),
        }
    }
}

/// # Safety
/// `object` must be a new reference, or null with an exception set.
pub unsafe fn owned<'py>(py: Python<'py>, object: *mut ffi::PyObject) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: upheld by the caller.
    unsafe { Bound::from_owned_ptr_or_err(py, object) }
}

/// Returns a string encoded as by [`push_unicode`].
pub fn unicode(text: &Bound<'_, PyString>) -> Vec<u8> {
    let mut out = Vec::new();
    // SAFETY: `text` is a live string, and the `Bound` proves that the GIL is held.
    unsafe { push_unicode(text.as_ptr(), &mut out) };
    out
}

/// Returns whether a string has only ASCII characters, in one byte each. Since 3.14, `false` also for the strings of a
/// subclass.
///
/// # Safety
/// `text` must be a live string, and the GIL must be held.
#[inline]
pub unsafe fn is_ascii(text: *mut ffi::PyObject) -> bool {
    // SAFETY: upheld by the caller. The characters follow the object, and the head of an ASCII string is shorter.
    unsafe {
        #[cfg(not(Py_3_14))]
        return ffi::PyUnicode_IS_ASCII(text) != 0;
        #[cfg(Py_3_14)]
        return ffi::PyUnicode_DATA(text) == text.byte_add(size_of::<ffi::PyASCIIObject>()).cast();
    }
}

/// Appends a string as UTF-8, with lone surrogates encoded like other code points.
///
/// # Safety
/// `text` must be a live string, and the GIL must be held.
pub unsafe fn push_unicode(text: *mut ffi::PyObject, out: &mut Vec<u8>) {
    // SAFETY: the data has the size that its length and kind imply.
    unsafe {
        let length = ffi::PyUnicode_GET_LENGTH(text) as usize;
        let data = ffi::PyUnicode_DATA(text);
        if is_ascii(text) {
            out.extend_from_slice(std::slice::from_raw_parts(data.cast(), length));
            return;
        }
        match ffi::PyUnicode_KIND(text) {
            ffi::PyUnicode_1BYTE_KIND => push_all(std::slice::from_raw_parts(data.cast::<u8>(), length), out),
            ffi::PyUnicode_2BYTE_KIND => push_all(std::slice::from_raw_parts(data.cast::<u16>(), length), out),
            _ => push_all(std::slice::from_raw_parts(data.cast::<u32>(), length), out),
        }
    }
}

fn push_all<T: Copy + Into<u32>>(codes: &[T], out: &mut Vec<u8>) {
    for &code in codes {
        cwm_trace::push_code_point(code.into(), out);
    }
}

/// Removes every match of ` at 0x[0-9a-fA-F]+` from `text[first..]`.
fn remove_addresses(text: &mut Vec<u8>, first: usize) {
    const MARK: &[u8] = b" at 0x";
    let (mut kept, mut from) = (first, first);
    while let Some(found) = memchr::memmem::find(&text[from..], MARK) {
        let digits_from = from + found + MARK.len();
        let digits = text[digits_from..]
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let end = if digits == 0 { digits_from } else { from + found };
        text.copy_within(from..end, kept);
        kept += end - from;
        from = digits_from + digits;
    }
    if from > kept {
        text.copy_within(from.., kept);
        text.truncate(kept + text.len() - from);
    }
}

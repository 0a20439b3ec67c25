//! Callbacks before `os._exit` and other functions that end the process without running more Python code, so that the
//! recording can be saved.

use std::ffi::{c_char, c_int, c_void};
use std::mem::transmute;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Functions of `posix` that end this process immediately or replace its program.
const NAMES: [&str; 4] = ["_exit", "abort", "execv", "execve"];

/// Original implementations of these functions.
static ORIGINALS: [AtomicPtr<c_void>; NAMES.len()] = [const { AtomicPtr::new(std::ptr::null_mut()) }; NAMES.len()];

/// Callback to call before these functions.
static LAST_WORDS: Mutex<Option<Py<PyAny>>> = Mutex::new(None);

/// The leading fields of CPython's `PyCFunctionObject`.
#[repr(C)]
struct Builtin {
    base: ffi::PyObject,
    method: *mut Method,
}

/// The leading fields of CPython's `PyMethodDef`.
#[repr(C)]
struct Method {
    name: *const c_char,
    function: *mut c_void,
    flags: c_int,
}

type NoArguments = unsafe extern "C" fn(*mut ffi::PyObject, *mut ffi::PyObject) -> *mut ffi::PyObject;
type Positional = unsafe extern "C" fn(*mut ffi::PyObject, *const *mut ffi::PyObject, isize) -> *mut ffi::PyObject;
type Keywords = unsafe extern "C" fn(
    *mut ffi::PyObject,
    *const *mut ffi::PyObject,
    isize,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;

/// Call `callback(name)` before `os._exit`, `os.abort`, `os.execv`, or `os.execve` ends the process.
///
/// `name` is the name of the function. None removes the callback. The functions remain the same objects, so programs
/// see no difference.
#[pyfunction]
pub fn before_exit(py: Python<'_>, callback: Option<Py<PyAny>>) -> PyResult<()> {
    if callback.is_some() {
        replace(py)?;
    }
    let mut last_words = LAST_WORDS
        .lock()
        .map_err(|_| PyRuntimeError::new_err("an earlier call panicked"))?;
    let before = std::mem::replace(&mut *last_words, callback);
    drop(last_words); // first, because dropping an object can run code
    drop(before);
    Ok(())
}

fn replace(py: Python<'_>) -> PyResult<()> {
    const KINDS: c_int = ffi::METH_VARARGS | ffi::METH_NOARGS | ffi::METH_FASTCALL | ffi::METH_KEYWORDS | ffi::METH_O;
    const POSITIONAL: c_int = ffi::METH_FASTCALL;
    const KEYWORDS: c_int = ffi::METH_FASTCALL | ffi::METH_KEYWORDS;
    let module = py.import("posix")?;
    for (at, name) in NAMES.into_iter().enumerate() {
        let function = module.getattr(name)?;
        // SAFETY: an exact builtin starts with the fields of `Builtin`.
        unsafe {
            if ffi::PyCFunction_CheckExact(function.as_ptr()) == 0 || !ORIGINALS[at].load(Ordering::Relaxed).is_null() {
                continue;
            }
            let method = (*function.as_ptr().cast::<Builtin>()).method;
            let ours: *mut c_void = match (*method).flags & KINDS {
                ffi::METH_NOARGS => NO_ARGUMENTS[at] as *mut c_void,
                POSITIONAL => WITH_ARGUMENTS[at] as *mut c_void,
                KEYWORDS => WITH_KEYWORDS[at] as *mut c_void,
                _ => continue, // this Python uses another calling convention: leave the function alone
            };
            ORIGINALS[at].store((*method).function, Ordering::Relaxed);
            (*method).function = ours;
        }
    }
    Ok(())
}

const NO_ARGUMENTS: [NoArguments; NAMES.len()] = [
    no_arguments::<0>,
    no_arguments::<1>,
    no_arguments::<2>,
    no_arguments::<3>,
];
const WITH_ARGUMENTS: [Positional; NAMES.len()] = [positional::<0>, positional::<1>, positional::<2>, positional::<3>];
const WITH_KEYWORDS: [Keywords; NAMES.len()] = [keywords::<0>, keywords::<1>, keywords::<2>, keywords::<3>];

fn say_last_words(at: usize) {
    // SAFETY: the interpreter calls builtins with the GIL held.
    let py = unsafe { Python::assume_attached() };
    let callback = LAST_WORDS
        .lock()
        .ok()
        .and_then(|callback| callback.as_ref().map(|c| c.clone_ref(py)));
    if let Some(callback) = callback
        && let Err(error) = callback.call1(py, (NAMES[at],))
    {
        error.write_unraisable(py, None); // the process must still end
    }
}

unsafe extern "C" fn no_arguments<const AT: usize>(
    module: *mut ffi::PyObject,
    null: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    say_last_words(AT);
    // SAFETY: `replace` stored the original function, which has this signature.
    unsafe { transmute::<*mut c_void, NoArguments>(ORIGINALS[AT].load(Ordering::Relaxed))(module, null) }
}

unsafe extern "C" fn positional<const AT: usize>(
    module: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: isize,
) -> *mut ffi::PyObject {
    say_last_words(AT);
    // SAFETY: `replace` stored the original function, which has this signature.
    unsafe { transmute::<*mut c_void, Positional>(ORIGINALS[AT].load(Ordering::Relaxed))(module, arguments, count) }
}

unsafe extern "C" fn keywords<const AT: usize>(
    module: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: isize,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    say_last_words(AT);
    // SAFETY: `replace` stored the original function, which has this signature.
    unsafe {
        transmute::<*mut c_void, Keywords>(ORIGINALS[AT].load(Ordering::Relaxed))(module, arguments, count, names)
    }
}

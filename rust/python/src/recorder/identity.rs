//! Which code object lies at an address. None is held, so another can take the address of one that died.
//!
//! Code objects that are met get numbers, never given again, and lose them when they die. CPython 3.11 tells of a death
//! only in ways that a program can see: by weak references, and by the extra slots of PEP 523, which `sys.getsizeof` counts
//! and for which the free functions of all their users are called. So the type's destructor is ours, around CPython's.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use pyo3::ffi;
use rustc_hash::FxHashMap;

static DESTRUCTOR: OnceLock<ffi::destructor> = OnceLock::new();
/// The numbers of the code objects that were met and live, by address.
static NUMBERS: LazyLock<Mutex<FxHashMap<usize, usize>>> = LazyLock::new(Mutex::default);
static GIVEN: AtomicUsize = AtomicUsize::new(0);
static DEATHS: AtomicUsize = AtomicUsize::new(0);

/// No Python code runs while it is locked.
fn numbers() -> MutexGuard<'static, FxHashMap<usize, usize>> {
    NUMBERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What CPython calls when a code object dies: on any thread, at any moment, also in the midst of an event.
unsafe extern "C" fn die(code: *mut ffi::PyObject) {
    if numbers().remove(&(code as usize)).is_some() {
        DEATHS.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(destructor) = DESTRUCTOR.get() {
        // SAFETY: it is called as CPython would call it.
        unsafe { destructor(code) };
    }
}

/// Puts the destructor in place, once and for good: code objects outlive recordings.
pub fn prepare() {
    // SAFETY: the GIL is held, and with it the type's slot is read and written.
    unsafe {
        let slot = &raw mut ffi::PyCode_Type.tp_dealloc;
        if let Some(destructor) = *slot
            && DESTRUCTOR.set(destructor).is_ok()
        {
            *slot = Some(die);
        }
    }
}

/// How many numbered code objects died. While it does not grow, each of their addresses stays that of the same one.
#[inline]
pub fn deaths() -> usize {
    // The GIL, under which code objects run and die, orders this.
    DEATHS.load(Ordering::Relaxed)
}

/// The number of the live code object at this address, which gets one if it has none.
pub fn number(code: *mut ffi::PyObject) -> usize {
    *numbers()
        .entry(code as usize)
        .or_insert_with(|| GIVEN.fetch_add(1, Ordering::Relaxed))
}

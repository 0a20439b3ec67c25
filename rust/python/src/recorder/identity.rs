//! Identities of code objects. The recorder holds no code object, so another one can take the address of one that died.
//!
//! Each code object that the recorder meets gets a number, which is never reused, and loses it when it dies. CPython
//! 3.11 reports deaths only in ways that a program can observe: through weak references, and through the extra slots of
//! PEP 523, which `sys.getsizeof` counts and for which CPython calls the free functions of all users. The recorder
//! therefore wraps the destructor of the type.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use pyo3::ffi;
use rustc_hash::FxHashMap;

static DESTRUCTOR: OnceLock<ffi::destructor> = OnceLock::new();
/// Numbers of the live code objects that were met, by address.
static NUMBERS: LazyLock<Mutex<FxHashMap<usize, usize>>> = LazyLock::new(Mutex::default);
static GIVEN: AtomicUsize = AtomicUsize::new(0);
static DEATHS: AtomicUsize = AtomicUsize::new(0);

/// Locks the numbers. No Python code runs while they are locked.
fn numbers() -> MutexGuard<'static, FxHashMap<usize, usize>> {
    NUMBERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Destroys a code object. CPython calls this on any thread at any time, even while an event is being recorded.
unsafe extern "C" fn die(code: *mut ffi::PyObject) {
    if numbers().remove(&(code as usize)).is_some() {
        DEATHS.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(destructor) = DESTRUCTOR.get() {
        // SAFETY: the arguments are those that CPython passed.
        unsafe { destructor(code) };
    }
}

/// Installs the destructor, once and permanently, because code objects outlive recordings.
pub fn prepare() {
    // SAFETY: the GIL is held, and it guards reads and writes of the type's slot.
    unsafe {
        let slot = &raw mut ffi::PyCode_Type.tp_dealloc;
        if let Some(destructor) = *slot
            && DESTRUCTOR.set(destructor).is_ok()
        {
            *slot = Some(die);
        }
    }
}

/// Returns the number of numbered code objects that died. While it does not change, each of their addresses identifies
/// the same code object.
#[inline]
pub fn deaths() -> usize {
    // Relaxed suffices: the GIL, under which code objects run and die, orders the accesses.
    DEATHS.load(Ordering::Relaxed)
}

/// Returns the number of the live code object at this address, and assigns one if necessary.
pub fn number(code: *mut ffi::PyObject) -> usize {
    *numbers()
        .entry(code as usize)
        .or_insert_with(|| GIVEN.fetch_add(1, Ordering::Relaxed))
}

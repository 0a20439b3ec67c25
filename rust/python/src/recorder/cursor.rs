//! The position of a walk in the containers around the current value and among the variables of a step.
//!
//! Containers and frames are read in place as long as no Python code runs. A `__repr__` could change or drop what is
//! still to be shown, so before it runs, the cursor holds those values. A container is shown as it was before that code
//! ran.

use std::borrow::Cow;
use std::ptr::{NonNull, null_mut};

use pyo3::ffi;
use pyo3::prelude::*;

use super::attributes;
use super::code::Code;
use super::layout::InterpreterFrame;
use super::leaf::{owned, push_unicode};
use super::tape::{Entry, Kind, Tape};

type Object = *mut ffi::PyObject;

unsafe extern "C" {
    /// The counterpart of `PyDict_Next` for sets, which CPython provides for its own extension modules. Creating an
    /// iterator instead can start a garbage collection on 3.11 and so run finalizers.
    fn _PySet_NextEntry(
        set: Object,
        position: *mut ffi::Py_ssize_t,
        element: *mut Object,
        hash: *mut ffi::Py_hash_t,
    ) -> std::ffi::c_int;
}

/// A position in a container.
pub struct Cursor {
    container: Object,
    kind: Kind,
    /// Next element: an index or, for a dict that is not held, the position of its iteration.
    next: isize,
    /// Element returned last: a dict key (null for other containers) and a value.
    current: (Object, Object),
    /// Held values. Boxed because cursors are moved often and containers of built-in values never hold anything.
    held: Option<Box<Held>>,
}

#[derive(Default)]
struct Held {
    /// Elements from `next` on, with alternating keys and values for a dict; `None` while the container itself is read.
    elements: Option<Vec<Py<PyAny>>>,
    /// Names of attributes.
    names: Vec<Vec<u8>>,
    /// The container, and the element that was current when it was held.
    kept: Vec<Py<PyAny>>,
}

impl Held {
    fn of(elements: Vec<Py<PyAny>>, names: Vec<Vec<u8>>) -> Option<Box<Held>> {
        Some(Box::new(Held {
            elements: Some(elements),
            names,
            kept: Vec::new(),
        }))
    }
}

impl Cursor {
    /// Returns the kind of container as which `value` is walked, or `None` for a leaf. If `attributes` is set,
    /// instances without their own `__repr__` are also walked.
    ///
    /// # Safety
    /// `value` must be alive, and the GIL must be held.
    #[inline]
    pub unsafe fn kind(value: Object, attributes: bool) -> Option<Kind> {
        // SAFETY: upheld by the caller.
        unsafe {
            let kind = ffi::Py_TYPE(value);
            Some(if kind == &raw mut ffi::PyList_Type {
                Kind::List
            } else if kind == &raw mut ffi::PyTuple_Type {
                Kind::Tuple
            } else if kind == &raw mut ffi::PyDict_Type {
                Kind::Dict
            } else if kind == &raw mut ffi::PySet_Type {
                if ffi::PySet_Size(value) == 0 {
                    Kind::EmptySet
                } else {
                    Kind::Set
                }
            } else if kind == &raw mut ffi::PyFrozenSet_Type {
                if ffi::PySet_Size(value) == 0 {
                    Kind::EmptyFrozenset
                } else {
                    Kind::Frozenset
                }
            } else if attributes && attributes::shows(value) {
                Kind::Attributes
            } else {
                return None;
            })
        }
    }

    /// Creates a cursor before the first element of `container`, for reading at most `reach` elements.
    ///
    /// # Safety
    /// `container` must be alive and of kind `kind`, and the GIL must be held.
    pub unsafe fn new(py: Python<'_>, container: Object, kind: Kind, reach: usize) -> PyResult<Cursor> {
        let mut cursor = Cursor {
            container,
            kind,
            next: 0,
            current: (null_mut(), null_mut()),
            held: None,
        };
        // SAFETY: upheld by the caller.
        unsafe {
            if kind == Kind::Attributes {
                let (names, values) = attributes::of(py, container, reach)?;
                cursor.held = Held::of(values, names);
            }
        }
        Ok(cursor)
    }

    pub fn is_over(&self, container: Object) -> bool {
        self.container == container
    }

    /// Returns the opening and closing text of a container.
    ///
    /// # Safety
    /// `value` must be alive and of kind `kind`, and the GIL must be held.
    pub unsafe fn brackets(value: Object, kind: Kind) -> (Cow<'static, [u8]>, &'static [u8]) {
        let (open, close): (&'static [u8], &'static [u8]) = match kind {
            Kind::List => (b"[", b"]"),
            // SAFETY: upheld by the caller.
            Kind::Tuple if unsafe { ffi::PyTuple_GET_SIZE(value) } == 1 => (b"(", b",)"),
            Kind::Tuple => (b"(", b")"),
            Kind::Dict | Kind::Set => (b"{", b"}"),
            Kind::EmptySet => (b"set(", b")"),
            Kind::EmptyFrozenset => (b"frozenset(", b")"),
            Kind::Frozenset => (b"frozenset({", b"})"),
            // SAFETY: upheld by the caller.
            Kind::Attributes => return (unsafe { class_name(value, b"(") }.into(), b")"),
        };
        (Cow::Borrowed(open), close)
    }

    /// Returns the text that replaces a container nested in itself.
    ///
    /// # Safety
    /// Same as for [`Cursor::brackets`].
    pub unsafe fn recursion(value: Object, kind: Kind) -> Cow<'static, [u8]> {
        Cow::Borrowed(match kind {
            Kind::List => b"[...]",
            Kind::Tuple => b"(...)",
            Kind::Dict => b"{...}",
            Kind::Set | Kind::EmptySet => b"set(...)",
            Kind::Frozenset | Kind::EmptyFrozenset => b"frozenset(...)",
            // SAFETY: upheld by the caller.
            Kind::Attributes => return unsafe { class_name(value, b"(...)") }.into(),
        })
    }

    /// Returns the next element: key and value for a dict, null and value otherwise. The element stays alive until
    /// Python code runs or, if the cursor [holds](Cursor::hold) its elements, until the cursor is dropped.
    ///
    /// # Safety
    /// No code has run since the container was last read, or the cursor holds its elements. The GIL must be held.
    #[inline]
    pub unsafe fn next(&mut self) -> Option<(Object, Object)> {
        // SAFETY: upheld by the caller; each index is checked against the current length.
        self.current = unsafe {
            match (self.elements(), self.kind) {
                (Some(held), Kind::Dict) => {
                    let at = self.next as usize;
                    let (key, value) = (held.get(at)?.as_ptr(), held.get(at + 1)?.as_ptr());
                    self.next += 2;
                    (key, value)
                }
                (Some(held), _) => {
                    let value = held.get(self.next as usize)?.as_ptr();
                    self.next += 1;
                    (null_mut(), value)
                }
                (None, Kind::Dict) => {
                    let (mut key, mut value) = (null_mut(), null_mut());
                    if ffi::PyDict_Next(self.container, &mut self.next, &mut key, &mut value) == 0 {
                        return None;
                    }
                    (key, value)
                }
                (None, Kind::List | Kind::Tuple) => {
                    let value = *self.items().get(self.next as usize)?;
                    self.next += 1;
                    (null_mut(), value)
                }
                (None, _) => (null_mut(), self.next_of_set()?),
            }
        };
        Some(self.current)
    }

    /// Returns the name of the attribute that was returned last.
    pub fn name(&self) -> Option<&[u8]> {
        let held = self.held.as_ref().filter(|_| self.kind == Kind::Attributes)?;
        held.names.get(self.next as usize - 1).map(Vec::as_slice)
    }

    #[inline]
    fn elements(&self) -> Option<&[Py<PyAny>]> {
        self.held.as_ref()?.elements.as_deref()
    }

    /// Returns the next element of a set.
    ///
    /// # Safety
    /// Same as for [`Cursor::next`].
    unsafe fn next_of_set(&mut self) -> Option<Object> {
        let (mut element, mut hash) = (null_mut(), 0);
        // SAFETY: upheld by the caller; the position is 0 or was set by an earlier call of this function.
        let found = unsafe { _PySet_NextEntry(self.container, &mut self.next, &mut element, &mut hash) };
        (found != 0).then_some(element)
    }

    /// Returns the elements of a list or tuple.
    ///
    /// # Safety
    /// Same as for [`Cursor::next`]. The slice is valid until code runs.
    unsafe fn items(&self) -> &[Object] {
        // SAFETY: a list or tuple stores its elements in one array of the length that it reports.
        unsafe {
            let (items, length) = if self.kind == Kind::List {
                let list = self.container.cast::<ffi::PyListObject>();
                ((*list).ob_item, ffi::PyList_GET_SIZE(self.container))
            } else {
                let tuple = self.container.cast::<ffi::PyTupleObject>();
                (
                    (&raw mut (*tuple).ob_item).cast(),
                    ffi::PyTuple_GET_SIZE(self.container),
                )
            };
            match NonNull::new(items) {
                Some(items) => std::slice::from_raw_parts(items.as_ptr(), length as usize),
                None => &[],
            }
        }
    }

    /// Skips scalars that equal those on the tape from piece `at` on. Returns whether it skipped any.
    ///
    /// # Safety
    /// Same as for [`Cursor::next`].
    #[inline]
    pub unsafe fn skip_unchanged(&mut self, tape: &Tape, at: &mut usize, text: &[u8]) -> bool {
        if !matches!(self.kind, Kind::List | Kind::Tuple) || self.elements().is_some() {
            return false;
        }
        let begin = self.next as usize;
        // SAFETY: upheld by the caller; no Python code runs here.
        let skipped = unsafe {
            let items = self.items().get(begin..).unwrap_or_default();
            let entries = tape.entries.get(*at..).unwrap_or_default();
            let same = |(item, entry): &(&Object, &Entry)| entry.known.is(**item, || text);
            items.iter().zip(entries).take_while(same).count()
        };
        self.next += skipped as isize;
        *at += skipped;
        skipped > 0
    }

    /// Holds the container and up to `reach` of the remaining elements.
    ///
    /// # Safety
    /// Same as for [`Cursor::next`].
    pub unsafe fn hold(&mut self, py: Python<'_>, reach: usize) {
        if self.held.as_ref().is_some_and(|held| !held.kept.is_empty()) {
            return;
        }
        // SAFETY: upheld by the caller.
        unsafe {
            let keep = |object: Object| Bound::from_borrowed_ptr(py, object).unbind();
            let mut held = self.held.take().unwrap_or_default();
            let current = [self.container, self.current.0, self.current.1];
            held.kept = current
                .into_iter()
                .filter(|object| !object.is_null())
                .map(keep)
                .collect();
            if held.elements.is_none() && self.kind != Kind::Tuple {
                let mut rest = Vec::new();
                if self.kind == Kind::Dict {
                    let (mut key, mut value) = (null_mut(), null_mut());
                    while rest.len() < 2 * reach
                        && ffi::PyDict_Next(self.container, &mut self.next, &mut key, &mut value) != 0
                    {
                        rest.extend([keep(key), keep(value)]);
                    }
                } else if self.kind != Kind::List {
                    while rest.len() < reach
                        && let Some(element) = self.next_of_set()
                    {
                        rest.push(keep(element));
                    }
                } else {
                    let items = self.items().get(self.next as usize..).unwrap_or_default();
                    rest.extend(items.iter().take(reach).map(|&item| keep(item)));
                }
                self.next = 0;
                held.elements = Some(rest);
            }
            self.held = Some(held);
        }
    }
}

unsafe fn class_name(value: Object, after: &[u8]) -> Vec<u8> {
    // SAFETY: `value` is alive, and so is its type. The result is a new reference or null.
    unsafe {
        let mut out = Vec::new();
        let py = Python::assume_attached();
        match owned(py, ffi::PyType_GetName(ffi::Py_TYPE(value))) {
            Ok(name) => push_unicode(name.as_ptr(), &mut out),
            Err(_) => out.push(b'?'),
        }
        out.extend_from_slice(after);
        out
    }
}

/// Variables that a step has yet to show.
pub enum Variables<'a> {
    /// None, or variables that are already held.
    Held,
    Slots(Slots<'a>),
}

/// Variables of a function, read from its frame.
pub struct Slots<'a> {
    pub py: Python<'a>,
    pub frame: InterpreterFrame,
    pub code: &'a Code,
    /// Slots in display order.
    pub order: &'a [u32],
    /// Position of the variable being shown.
    place: usize,
    /// Held variables and the position of the first of them; `None` until they are held.
    held: Option<(usize, Vec<Py<PyAny>>)>,
}

impl<'a> Slots<'a> {
    pub fn new(py: Python<'a>, frame: InterpreterFrame, code: &'a Code, order: &'a [u32]) -> Slots<'a> {
        Slots {
            py,
            frame,
            code,
            order,
            place: 0,
            held: None,
        }
    }
}

impl Variables<'_> {
    /// Returns the variable at `place`, as it was before any `__repr__` of this step ran. Marks the variables before
    /// `place` as shown.
    ///
    /// # Safety
    /// The variables must be [`Slots`] whose frame is running and belongs to the code. The slots in `order` must have
    /// been bound when the step began.
    #[inline]
    pub unsafe fn value(&mut self, place: usize) -> Object {
        let Variables::Slots(slots) = self else {
            return null_mut();
        };
        slots.place = place;
        match &slots.held {
            Some((first, held)) => held[place - first].as_ptr(),
            // SAFETY: upheld by the caller.
            None => unsafe { slots.code.value(slots.frame, slots.order[place] as usize) },
        }
    }

    /// Holds the values that are still to be shown, because Python code is about to run.
    ///
    /// # Safety
    /// Same as for [`Variables::value`].
    pub unsafe fn hold(&mut self) {
        let Variables::Slots(slots) = self else { return };
        if slots.held.is_some() {
            return;
        }
        let first = slots.place;
        // SAFETY: by the caller's contract, the slots still hold the values from the beginning of the step.
        let value = |&slot: &u32| unsafe {
            Bound::from_borrowed_ptr(slots.py, slots.code.value(slots.frame, slot as usize)).unbind()
        };
        slots.held = Some((first, slots.order[first..].iter().map(value).collect()));
    }
}

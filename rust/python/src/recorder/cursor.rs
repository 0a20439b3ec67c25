//! Where a walk stands: in the containers around the current value, and among the variables of a step.
//!
//! Containers and frames are read where they lie, for as long as no Python code runs. When a `__repr__` is about to run,
//! what is still to be shown is held, since that code may change or drop it: a container is shown as it was before.

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
    /// Of CPython, for its own extension modules: what `PyDict_Next` is to a dict. An iterator would be an object whose
    /// making can start a garbage collection on 3.11, and so run finalizers.
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
    /// The next element: an index, or for a dict that is not held its iterator's position.
    next: isize,
    /// What was given last, a dict's key (null elsewhere) and a value.
    current: (Object, Object),
    /// What is held; boxed, since containers of built-in values never need it, and cursors are moved.
    held: Option<Box<Held>>,
}

#[derive(Default)]
struct Held {
    /// The elements from `next` on, of a dict keys and values in turn; `None` where the container's own are read.
    elements: Option<Vec<Py<PyAny>>>,
    /// The names of attributes.
    names: Vec<Vec<u8>>,
    /// The container, and the element that was given last when it was held.
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
    /// What `value` is walked as; `None` for a leaf. With `attributes`, instances that have no `__repr__` of their own
    /// are walked too.
    ///
    /// # Safety
    /// `value` is alive and the GIL is held.
    #[inline]
    pub unsafe fn kind(value: Object, attributes: bool) -> Option<Kind> {
        // SAFETY: the caller's promise.
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

    /// A cursor before the first element of `container`, of which at most `reach` will be looked at.
    ///
    /// # Safety
    /// `container` is alive and of that kind, and the GIL is held.
    pub unsafe fn new(py: Python<'_>, container: Object, kind: Kind, reach: usize) -> PyResult<Cursor> {
        let mut cursor = Cursor {
            container,
            kind,
            next: 0,
            current: (null_mut(), null_mut()),
            held: None,
        };
        // SAFETY: the caller's promise.
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

    /// What stands around the elements.
    ///
    /// # Safety
    /// `value` is alive and of that kind, and the GIL is held.
    pub unsafe fn brackets(value: Object, kind: Kind) -> (Cow<'static, [u8]>, &'static [u8]) {
        let (open, close): (&'static [u8], &'static [u8]) = match kind {
            Kind::List => (b"[", b"]"),
            // SAFETY: the caller's promise.
            Kind::Tuple if unsafe { ffi::PyTuple_GET_SIZE(value) } == 1 => (b"(", b",)"),
            Kind::Tuple => (b"(", b")"),
            Kind::Dict | Kind::Set => (b"{", b"}"),
            Kind::EmptySet => (b"set(", b")"),
            Kind::EmptyFrozenset => (b"frozenset(", b")"),
            Kind::Frozenset => (b"frozenset({", b"})"),
            // SAFETY: the caller's promise.
            Kind::Attributes => return (unsafe { class_name(value, b"(") }.into(), b")"),
        };
        (Cow::Borrowed(open), close)
    }

    /// What stands for a container within itself.
    ///
    /// # Safety
    /// As for [`Cursor::brackets`].
    pub unsafe fn recursion(value: Object, kind: Kind) -> Cow<'static, [u8]> {
        Cow::Borrowed(match kind {
            Kind::List => b"[...]",
            Kind::Tuple => b"(...)",
            Kind::Dict => b"{...}",
            Kind::Set | Kind::EmptySet => b"set(...)",
            Kind::Frozenset | Kind::EmptyFrozenset => b"frozenset(...)",
            // SAFETY: the caller's promise.
            Kind::Attributes => return unsafe { class_name(value, b"(...)") }.into(),
        })
    }

    /// The next element, a dict's with its key, the others' with null. Alive until Python code runs, or the cursor ends
    /// where it [holds](Cursor::hold) its elements.
    ///
    /// # Safety
    /// No code ran since the container was read last, or the cursor holds its elements; the GIL is held.
    #[inline]
    pub unsafe fn next(&mut self) -> Option<(Object, Object)> {
        // SAFETY: the caller's promise; indices are checked against the length at this moment.
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

    /// The name of the attribute that was given last.
    pub fn name(&self) -> Option<&[u8]> {
        let held = self.held.as_ref().filter(|_| self.kind == Kind::Attributes)?;
        held.names.get(self.next as usize - 1).map(Vec::as_slice)
    }

    #[inline]
    fn elements(&self) -> Option<&[Py<PyAny>]> {
        self.held.as_ref()?.elements.as_deref()
    }

    /// The next element of a set.
    ///
    /// # Safety
    /// As for [`Cursor::next`].
    unsafe fn next_of_set(&mut self) -> Option<Object> {
        let (mut element, mut hash) = (null_mut(), 0);
        // SAFETY: the caller's promise; the position is one that this function gave, or 0.
        let found = unsafe { _PySet_NextEntry(self.container, &mut self.next, &mut element, &mut hash) };
        (found != 0).then_some(element)
    }

    /// The elements of a list or tuple.
    ///
    /// # Safety
    /// As for [`Cursor::next`]; the slice is valid until code runs.
    unsafe fn items(&self) -> &[Object] {
        // SAFETY: lists and tuples hold as many elements in one array as they say.
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

    /// Passes the scalars that are as the tape has them from piece `at` on. Says whether there were any.
    ///
    /// # Safety
    /// As for [`Cursor::next`].
    #[inline]
    pub unsafe fn skip_unchanged(&mut self, tape: &Tape, at: &mut usize, text: &[u8]) -> bool {
        if !matches!(self.kind, Kind::List | Kind::Tuple) || self.elements().is_some() {
            return false;
        }
        let begin = self.next as usize;
        // SAFETY: the caller's promise; nothing runs here.
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

    /// Holds the container and the elements that are still to be given, at most `reach` of them.
    ///
    /// # Safety
    /// As for [`Cursor::next`].
    pub unsafe fn hold(&mut self, py: Python<'_>, reach: usize) {
        if self.held.as_ref().is_some_and(|held| !held.kept.is_empty()) {
            return;
        }
        // SAFETY: the caller's promise.
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
    // SAFETY: `value` is alive, and so is its type; the result is a new reference or null.
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

/// The variables that a step is still to show.
pub enum Variables<'a> {
    /// None, or such as are held already.
    Held,
    Slots(Slots<'a>),
}

/// The variables of a function, read from its frame.
pub struct Slots<'a> {
    pub py: Python<'a>,
    pub frame: InterpreterFrame,
    pub code: &'a Code,
    /// The slots in the order in which they are shown.
    pub order: &'a [u32],
    /// The variable that is shown now.
    place: usize,
    /// The variables from one on, once they are held.
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
    /// The variable at `place`, as it was before any `__repr__` of this step ran; from then on those before `place` are
    /// shown.
    ///
    /// # Safety
    /// The variables are [`Slots`], their frame is running and belongs to the code; the slots in `order` were bound when
    /// the step began.
    #[inline]
    pub unsafe fn value(&mut self, place: usize) -> Object {
        let Variables::Slots(slots) = self else {
            return null_mut();
        };
        slots.place = place;
        match &slots.held {
            Some((first, held)) => held[place - first].as_ptr(),
            // SAFETY: the caller's promise.
            None => unsafe { slots.code.value(slots.frame, slots.order[place] as usize) },
        }
    }

    /// Holds the values that are still to be shown, since Python code is about to run.
    ///
    /// # Safety
    /// As for [`Variables::value`].
    pub unsafe fn hold(&mut self) {
        let Variables::Slots(slots) = self else { return };
        if slots.held.is_some() {
            return;
        }
        let first = slots.place;
        // SAFETY: the caller's promise: the slots still hold what they held when the step began.
        let value = |&slot: &u32| unsafe {
            Bound::from_borrowed_ptr(slots.py, slots.code.value(slots.frame, slot as usize)).unbind()
        };
        slots.held = Some((first, slots.order[first..].iter().map(value).collect()));
    }
}

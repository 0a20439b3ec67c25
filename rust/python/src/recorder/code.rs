//! What the recorder needs to know of a code object, looked up once and kept.

use std::ptr::NonNull;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyString};
use rustc_hash::FxHashMap;

use cwm_trace::Trace;

use super::layout::{InterpreterFrame, slot_names};
use super::leaf::unicode;

const CO_OPTIMIZED: u32 = 0x1;
/// CO_GENERATOR, CO_COROUTINE and CO_ASYNC_GENERATOR.
const CO_SUSPENDED: u32 = 0x20 | 0x80 | 0x200;
/// Bits of a slot's kind, from CPython's `pycore_code.h`.
const CO_FAST_HIDDEN: u8 = 0x10;
const CO_FAST_LOCAL: u8 = 0x20;
const CO_FAST_CELL: u8 = 0x40;
const CO_FAST_FREE: u8 = 0x80;
const NO_LINE: u32 = u32::MAX;
const MAX_KEPT: u32 = 1 << 16;

/// A slot of a frame: the variable it holds, and whether the value lies in a cell.
pub struct Slot {
    pub name: Vec<u8>,
    pub in_cell: bool,
    /// A variable of an inlined comprehension can have the name of one around it, and so a variable two slots. What is
    /// shown is what `frame.f_locals` shows: on 3.12 the later slot, on 3.13 the first one that is bound.
    twin: Twin,
}

enum Twin {
    No,
    /// Never shown: the other slot is in its place, or the name in the body of a module or class begins with `__`.
    Hidden,
    /// The slot that is shown where this one is unbound.
    Or(usize),
    /// Shown by way of this other one, where that is unbound.
    After(usize),
}

/// A code object met during the recording. Everything is a copy: it dies as it would unrecorded.
pub struct Code {
    /// Tells it from another at its address.
    pub number: usize,
    /// The deaths of code objects when it was told last.
    pub deaths: usize,
    pub in_scope: bool,
    /// Index of its file among those of the recording.
    pub file: u32,
    /// Whether variables live in slots (a function) rather than in a namespace (the body of a module or class).
    pub optimized: bool,
    pub slots: Vec<Slot>,
    /// Whether some variable lives in a cell, or has two slots.
    is_special: bool,
    /// The first slots of a class or module body belong to inlined comprehensions.
    hidden: usize,
    /// Of a class or module body on 3.12, the slots that are shown beside the namespace while they are bound: the
    /// variables of inlined comprehensions.
    beside: Vec<usize>,
    /// `co_name`, of code in scope.
    pub name: Vec<u8>,
    pub first_line: u32,
    /// Shapes, name ids of the slots, and line ids by number, in the trace of this generation.
    pub generation: u64,
    pub shapes: Vec<Shape>,
    /// Shapes by their ids in the trace.
    shape_ids: FxHashMap<u32, u32>,
    names: Vec<u32>,
    lines: Vec<u32>,
    /// Where a generator or coroutine begins, in bytes of its instructions; see [`Code::find_start`].
    start: Option<usize>,
}

/// An order in which the variables of a function are shown; which are bound follows.
pub struct Shape {
    /// Its id in the trace.
    pub id: u32,
    pub order: Vec<u32>,
    /// The shapes that followed so far, by the slots that were bound.
    next: FxHashMap<Box<[u64]>, u32>,
}

impl Code {
    /// A code object outside the scope: nothing more needs to be known of it.
    pub fn outside(number: usize) -> Code {
        Code {
            number,
            deaths: 0,
            in_scope: false,
            file: 0,
            optimized: true,
            slots: Vec::new(),
            is_special: false,
            hidden: 0,
            beside: Vec::new(),
            name: Vec::new(),
            first_line: 0,
            generation: 0,
            shapes: Vec::new(),
            shape_ids: FxHashMap::default(),
            names: Vec::new(),
            lines: Vec::new(),
            start: None,
        }
    }

    /// # Safety
    /// `object` is a code object.
    pub unsafe fn read(object: &Bound<'_, PyAny>, number: usize, file: u32) -> PyResult<Code> {
        let optimized = object.getattr("co_flags")?.extract::<u32>()? & CO_OPTIMIZED != 0;
        let (mut slots, mut hidden, mut beside) = (Vec::new(), 0, Vec::new());
        // SAFETY: the caller's promise.
        for (name, kind) in unsafe { slot_names(object) } {
            let name = unicode(&name);
            let is_private = !optimized && name.starts_with(b"__");
            hidden += usize::from(kind & CO_FAST_LOCAL != 0);
            // Free variables of a class body are none of its own.
            if !optimized && !is_private && kind & CO_FAST_HIDDEN != 0 && kind & CO_FAST_FREE == 0 {
                beside.push(slots.len());
            }
            slots.push(Slot {
                name,
                in_cell: kind & (CO_FAST_CELL | CO_FAST_FREE) != 0,
                twin: if is_private { Twin::Hidden } else { Twin::No },
            });
        }
        pair_twins(&mut slots);
        Ok(Code {
            number,
            deaths: 0,
            in_scope: true,
            file,
            optimized,
            is_special: slots.iter().any(|slot| slot.in_cell || !matches!(slot.twin, Twin::No)),
            slots,
            hidden,
            beside,
            name: unicode(&object.getattr("co_name")?.cast_into::<PyString>()?),
            // A program can make code of any number.
            first_line: object.getattr("co_firstlineno")?.extract::<i64>()?.clamp(0, 1 << 30) as u32,
            generation: 0,
            shapes: Vec::new(),
            shape_ids: FxHashMap::default(),
            names: Vec::new(),
            lines: Vec::new(),
            start: None,
        })
    }

    /// Looks up where a generator or coroutine begins: at the first instruction RESUME.
    pub fn find_start(&mut self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        static RESUME: PyOnceLock<u8> = PyOnceLock::new();
        let py = object.py();
        if object.getattr("co_flags")?.extract::<u32>()? & CO_SUSPENDED == 0 {
            return Ok(());
        }
        let resume = *RESUME.get_or_try_init(py, || {
            py.import("opcode")?
                .getattr("opmap")?
                .get_item("RESUME")?
                .extract::<u8>()
        })?;
        let code = object.getattr("co_code")?.cast_into::<PyBytes>()?;
        self.start = code
            .as_bytes()
            .chunks(2)
            .position(|unit| unit[0] == resume)
            .map(|unit| 2 * unit);
        Ok(())
    }

    /// Whether it is that of a generator or coroutine, where [`Code::find_start`] was asked.
    pub fn suspends(&self) -> bool {
        self.start.is_some()
    }

    /// Whether the frame, at the beginning of a step of a generator or coroutine, goes on after an earlier one.
    ///
    /// # Safety
    /// `frame` is a live frame object of this code, and the GIL is held.
    #[inline]
    pub unsafe fn goes_on(&self, frame: *mut ffi::PyFrameObject) -> bool {
        // SAFETY: the caller's promise.
        let at = || unsafe { ffi::PyFrame_GetLasti(frame) };
        self.start.is_some_and(|start| at() > start as i32)
    }

    /// Forgets the ids of an earlier trace and interns the names in `trace`.
    pub fn enter(&mut self, trace: &mut Trace, generation: u64) {
        self.generation = generation;
        self.lines.clear();
        self.names.clear();
        self.names
            .extend(self.slots.iter().map(|slot| trace.intern_name(&slot.name)));
        self.shapes.clear();
        self.shape_ids.clear();
        self.add_shape(trace, Vec::new());
    }

    /// Whether the body of a module or class shows its slots instead of its namespace: on 3.13, within an inlined
    /// comprehension.
    ///
    /// # Safety
    /// `frame` is running and belongs to this code, and the GIL is held.
    #[inline]
    pub unsafe fn in_comprehension(&self, frame: InterpreterFrame) -> bool {
        // SAFETY: the caller's promise.
        cfg!(Py_3_13) && (0..self.hidden).any(|slot| unsafe { !self.own_value(frame, slot).is_null() })
    }

    /// The variables that the body of a module or class shows beside those of its namespace, and in place of them: on
    /// 3.12, those of the inlined comprehension that it is within. By the ids of their names; the values are borrowed.
    ///
    /// # Safety
    /// `frame` is running and belongs to this code, and the GIL is held.
    pub unsafe fn beside_namespace(
        &self,
        frame: InterpreterFrame,
    ) -> impl Iterator<Item = (u32, NonNull<ffi::PyObject>)> {
        let shown: &[usize] = if cfg!(Py_3_13) { &[] } else { &self.beside };
        // SAFETY: the caller's promise.
        let bound = move |&slot: &usize| unsafe { NonNull::new(self.own_value(frame, slot)) };
        shown
            .iter()
            .filter_map(move |slot| bound(slot).map(|value| (self.names[*slot], value)))
    }

    /// The value of a variable: what its slot holds, or what the cell in it holds. Borrowed; null when unbound.
    ///
    /// # Safety
    /// `frame` is running and belongs to this code, `slot` is one of its slots, and the GIL is held.
    #[inline]
    pub unsafe fn value(&self, frame: InterpreterFrame, slot: usize) -> *mut ffi::PyObject {
        // SAFETY: the caller's promise.
        unsafe {
            match self.is_special {
                true => self.special_value(frame, slot),
                false => frame.slot(slot),
            }
        }
    }

    unsafe fn special_value(&self, frame: InterpreterFrame, slot: usize) -> *mut ffi::PyObject {
        // SAFETY: the caller's promise.
        unsafe {
            match self.slots[slot].twin {
                Twin::No => self.own_value(frame, slot),
                Twin::Hidden | Twin::After(_) => std::ptr::null_mut(),
                Twin::Or(other) => {
                    let value = self.own_value(frame, slot);
                    if value.is_null() {
                        self.own_value(frame, other)
                    } else {
                        value
                    }
                }
            }
        }
    }

    /// What a slot holds, or what the cell in it holds, whatever is shown of it.
    unsafe fn own_value(&self, frame: InterpreterFrame, slot: usize) -> *mut ffi::PyObject {
        // SAFETY: the caller's promise; a cell is checked to be one before it is read as one.
        unsafe {
            let value = frame.slot(slot);
            if self.slots[slot].in_cell && !value.is_null() && ffi::PyCell_Check(value) != 0 {
                return (*value.cast::<ffi::PyCellObject>()).ob_ref;
            }
            value
        }
    }

    /// Whether a variable is bound; of a later slot of two, whether it is the one that is shown.
    unsafe fn is_bound(&self, frame: InterpreterFrame, slot: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            match self.slots[slot].twin {
                Twin::After(first) if self.own_value(frame, first).is_null() => !self.own_value(frame, slot).is_null(),
                _ => !self.value(frame, slot).is_null(),
            }
        }
    }

    /// Notes in `bound` which slots are bound, a bit a slot, and says whether that changed.
    ///
    /// # Safety
    /// `frame` is running and belongs to this code, and the GIL is held.
    #[inline]
    pub unsafe fn note_bound(&self, frame: InterpreterFrame, bound: &mut Vec<u64>) -> bool {
        let count = self.slots.len();
        bound.resize(count.div_ceil(64), 0);
        let mut changed = false;
        for (index, word) in bound.iter_mut().enumerate() {
            let mut bits = 0;
            for slot in index * 64..count.min(index * 64 + 64) {
                // SAFETY: `slot` is one of the code's slots.
                bits |= u64::from(unsafe { self.is_bound(frame, slot) }) << (slot % 64);
            }
            changed |= *word != bits;
            *word = bits;
        }
        changed
    }

    /// The id in the trace of a slot's name.
    pub fn name_id(&self, slot: u32) -> u32 {
        self.names[slot as usize]
    }

    /// The slot that is shown as the variable of this name.
    pub fn slot_of(&self, name: u32) -> Option<usize> {
        let shown = |slot: &usize| self.names[*slot] == name && !self.is_hidden(*slot);
        (0..self.slots.len()).find(shown)
    }

    /// Whether a slot is shown by way of another one, or not at all.
    fn is_hidden(&self, slot: usize) -> bool {
        matches!(self.slots[slot].twin, Twin::Hidden | Twin::After(_))
    }

    /// The shape that follows shape `from` where the slots in `bound` are: variables keep their order, unbound ones go,
    /// new ones come last, in the order of their slots.
    pub fn shape_after(&mut self, from: u32, bound: &[u64], trace: &mut Trace) -> u32 {
        if let Some(&shape) = self.shapes[from as usize].next.get(bound) {
            return shape;
        }
        let is_bound = |slot: u32| bound[slot as usize / 64] >> (slot % 64) & 1 != 0;
        let old = &self.shapes[from as usize].order;
        let mut order: Vec<u32> = old.iter().copied().filter(|&slot| is_bound(slot)).collect();
        let is_new = |slot: &u32| is_bound(*slot) && !self.is_hidden(*slot as usize) && !old.contains(slot);
        let mut new: Vec<u32> = (0..self.slots.len() as u32).filter(is_new).collect();
        // One that has two slots stands in the place of the slot that is shown.
        new.sort_by_key(|&slot| match self.slots[slot as usize].twin {
            Twin::Or(other) if is_bound(other as u32) => other as u32,
            _ => slot,
        });
        order.extend(new);
        let shape = self.add_shape(trace, order);
        self.shapes[from as usize].next.insert(bound.into(), shape);
        shape
    }

    /// The shape of this order of slots.
    pub fn add_shape(&mut self, trace: &mut Trace, order: Vec<u32>) -> u32 {
        let names: Vec<u32> = order.iter().map(|&slot| self.names[slot as usize]).collect();
        let id = trace.intern_shape(&names);
        let shapes = &mut self.shapes;
        *self.shape_ids.entry(id).or_insert_with(|| {
            let next = FxHashMap::default();
            shapes.push(Shape { id, order, next });
            (shapes.len() - 1) as u32
        })
    }

    /// The id of line `number`, if it was kept.
    #[inline]
    pub fn line_id(&self, number: u32) -> Option<u32> {
        let index = number.wrapping_sub(self.first_line) as usize;
        self.lines.get(index).copied().filter(|&id| id != NO_LINE)
    }

    pub fn keep_line_id(&mut self, number: u32, id: u32) {
        // A code object's lines rarely come before its first; those that do are not kept.
        let Some(index) = number.checked_sub(self.first_line).filter(|&index| index < MAX_KEPT) else {
            return;
        };
        let index = index as usize;
        if index >= self.lines.len() {
            self.lines.resize(index + 1, NO_LINE);
        }
        self.lines[index] = id;
    }
}

/// Finds the variables that have two slots.
fn pair_twins(slots: &mut [Slot]) {
    for later in 1..slots.len() {
        let Some(first) = slots[..later].iter().position(|slot| slot.name == slots[later].name) else {
            continue;
        };
        if matches!(slots[later].twin, Twin::Hidden) {
            continue;
        }
        if cfg!(Py_3_13) {
            slots[first].twin = Twin::Or(later);
            slots[later].twin = Twin::After(first);
        } else {
            slots[first].twin = Twin::Hidden;
        }
    }
}

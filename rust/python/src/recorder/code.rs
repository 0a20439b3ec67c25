//! Facts about a code object that the recorder looks up once and caches.

use std::ptr::NonNull;

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString};
use rustc_hash::FxHashMap;

use cwm_trace::Trace;

use super::layout::{self, InterpreterFrame, slot_names};
use super::leaf::unicode;

const CO_OPTIMIZED: u32 = 0x1;
/// `CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR`.
const CO_SUSPENDED: u32 = 0x20 | 0x80 | 0x200;
/// Bits of a slot's kind, from CPython's `pycore_code.h`.
const CO_FAST_HIDDEN: u8 = 0x10;
const CO_FAST_LOCAL: u8 = 0x20;
const CO_FAST_CELL: u8 = 0x40;
const CO_FAST_FREE: u8 = 0x80;
const NO_LINE: u32 = u32::MAX;
const MAX_KEPT: u32 = 1 << 16;

/// Instructions that the recorder recognizes. Each minor version has its own numbers.
struct Opcodes {
    resume: u8,
    returns: Vec<u8>,
}

/// Looks up what is needed later, when no Python code may run.
pub fn prepare(py: Python<'_>) -> PyResult<()> {
    opcodes(py).map(drop)
}

fn opcodes(py: Python<'_>) -> PyResult<&Opcodes> {
    static OPCODES: PyOnceLock<Opcodes> = PyOnceLock::new();
    OPCODES.get_or_try_init(py, || {
        let opmap = py.import("opcode")?.getattr("opmap")?;
        let number = |name: &str| opmap.get_item(name).and_then(|number| number.extract::<u8>()).ok();
        let resume =
            number("RESUME").ok_or_else(|| PyImportError::new_err("this CPython has no RESUME instruction"))?;
        let returns = ["RETURN_VALUE", "RETURN_CONST"]
            .into_iter()
            .filter_map(number)
            .collect();
        Ok(Opcodes { resume, returns })
    })
}

/// Returns whether an exception ends `frame`, which is at its RETURN event with `arg`.
///
/// Since 3.12, the interpreter passes None both for an exception and for a return of None. The current instruction
/// distinguishes the two.
///
/// # Safety
/// `frame` must be a live frame object of this interpreter, `arg` must be null or a live object, and the GIL must be
/// held.
pub unsafe fn unwinds(py: Python<'_>, frame: *mut ffi::PyFrameObject, arg: *mut ffi::PyObject) -> PyResult<bool> {
    // SAFETY: upheld by the caller; `PyFrame_GetCode` returns a new reference, whose ownership is passed on.
    let (code, last) = unsafe {
        if cfg!(not(Py_3_12)) || arg != ffi::Py_None() {
            return Ok(arg.is_null());
        }
        let code = ffi::PyFrame_GetCode(frame).cast::<ffi::PyObject>();
        (Bound::from_owned_ptr(py, code), ffi::PyFrame_GetLasti(frame))
    };
    let code = code.getattr(intern!(py, "co_code"))?.cast_into::<PyBytes>()?;
    let opcode = usize::try_from(last).ok().and_then(|last| code.as_bytes().get(last));
    let returns = &opcodes(py)?.returns;
    Ok(opcode.is_none_or(|opcode| !returns.contains(opcode)))
}

/// A slot of a frame: the variable that it holds, and whether the value is in a cell.
pub struct Slot {
    pub name: Vec<u8>,
    pub in_cell: bool,
    /// A variable of an inlined comprehension can have the same name as an outer variable, which then has two slots.
    /// The recorder shows what `frame.f_locals` shows: the later slot on 3.12, the first bound slot on 3.13.
    twin: Twin,
}

enum Twin {
    No,
    /// Never shown: another slot replaces it, or its name in a module or class body begins with `__`.
    Hidden,
    /// Shows that other slot if this one is unbound.
    Or(usize),
    /// Shown through that other slot if the other slot is unbound.
    After(usize),
}

/// A code object seen by the recording. Holds only copies, so recording does not extend the code object's lifetime.
pub struct Code {
    /// Distinguishes the code object from a later one at the same address.
    pub number: usize,
    /// Count of code object deaths when the number was last checked.
    pub deaths: usize,
    pub in_scope: bool,
    /// Index of the code object's file among the files of the recording.
    pub file: u32,
    /// Whether variables are in slots (a function) rather than in a namespace (a module or class body).
    pub optimized: bool,
    pub slots: Vec<Slot>,
    /// Whether some variable is in a cell or has two slots.
    is_special: bool,
    /// Number of leading slots of a class or module body that belong to inlined comprehensions.
    hidden: usize,
    /// For a class or module body on 3.12, the slots shown in addition to the namespace while bound: the variables of
    /// inlined comprehensions.
    beside: Vec<usize>,
    /// `co_name`; empty for code outside the scope.
    pub name: Vec<u8>,
    pub first_line: u32,
    /// Trace generation to which the shapes, name IDs, and line IDs belong.
    pub generation: u64,
    pub shapes: Vec<Shape>,
    /// Shapes by their IDs in the trace.
    shape_ids: FxHashMap<u32, u32>,
    names: Vec<u32>,
    lines: Vec<u32>,
    /// Offset in bytes of the instruction where a generator or coroutine begins; see [`Code::find_start`].
    start: Option<usize>,
}

/// An order in which a function's variables are shown. The bound slots determine the next shape.
pub struct Shape {
    /// ID of the shape in the trace.
    pub id: u32,
    pub order: Vec<u32>,
    /// Shapes that have followed this one, by bound slots.
    next: FxHashMap<Box<[u64]>, u32>,
}

impl Code {
    /// Creates the entry of a code object outside the scope, about which nothing else needs to be known.
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
    /// `object` must be a code object.
    pub unsafe fn read(object: &Bound<'_, PyAny>, number: usize, file: u32) -> PyResult<Code> {
        let optimized = object.getattr("co_flags")?.extract::<u32>()? & CO_OPTIMIZED != 0;
        let (mut slots, mut hidden, mut beside) = (Vec::new(), 0, Vec::new());
        // SAFETY: upheld by the caller.
        for (name, kind) in unsafe { slot_names(object)? } {
            let name = unicode(&name);
            let is_private = !optimized && name.starts_with(b"__");
            hidden += usize::from(kind & CO_FAST_LOCAL != 0);
            // Free variables of a class body do not belong to the class.
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
            // A program can create code with any line number.
            first_line: object.getattr("co_firstlineno")?.extract::<i64>()?.clamp(0, 1 << 30) as u32,
            generation: 0,
            shapes: Vec::new(),
            shape_ids: FxHashMap::default(),
            names: Vec::new(),
            lines: Vec::new(),
            start: None,
        })
    }

    /// Finds where a generator or coroutine begins: at its first `RESUME` instruction.
    pub fn find_start(&mut self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        if object.getattr("co_flags")?.extract::<u32>()? & CO_SUSPENDED == 0 {
            return Ok(());
        }
        let resume = opcodes(object.py())?.resume;
        let code = object.getattr("co_code")?.cast_into::<PyBytes>()?;
        self.start = code
            .as_bytes()
            .chunks(2)
            .position(|unit| unit[0] == resume)
            .map(|unit| 2 * unit);
        Ok(())
    }

    /// Returns whether this is the code of a generator or coroutine. Call [`Code::find_start`] first.
    pub fn suspends(&self) -> bool {
        self.start.is_some()
    }

    /// Returns whether `frame`, which begins a step of a generator or coroutine, resumes after an earlier step.
    ///
    /// # Safety
    /// `frame` must be a live frame object of this code, and the GIL must be held.
    #[inline]
    pub unsafe fn goes_on(&self, frame: *mut ffi::PyFrameObject) -> bool {
        // SAFETY: upheld by the caller.
        let at = || unsafe { ffi::PyFrame_GetLasti(frame) };
        self.start.is_some_and(|start| at() > start as i32)
    }

    /// Drops the IDs of an earlier trace and interns the names in `trace`.
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

    /// Returns whether a module or class body shows its slots instead of its namespace, as it does within an inlined
    /// comprehension on 3.13.
    ///
    /// # Safety
    /// `frame` must be running and belong to this code, and the GIL must be held.
    #[inline]
    pub unsafe fn in_comprehension(&self, frame: InterpreterFrame) -> bool {
        // SAFETY: upheld by the caller.
        cfg!(Py_3_13)
            && layout::is_known()
            && (0..self.hidden).any(|slot| unsafe { !self.own_value(frame, slot).is_null() })
    }

    /// Returns the variables that override or extend the namespace of a module or class body: on 3.12, the variables of
    /// the enclosing inlined comprehension. The keys are name IDs; the values are borrowed.
    ///
    /// # Safety
    /// `frame` must be running and belong to this code, and the GIL must be held.
    pub unsafe fn beside_namespace(
        &self,
        frame: InterpreterFrame,
    ) -> impl Iterator<Item = (u32, NonNull<ffi::PyObject>)> {
        let shown: &[usize] = if cfg!(Py_3_13) || !layout::is_known() {
            &[]
        } else {
            &self.beside
        };
        // SAFETY: upheld by the caller.
        let bound = move |&slot: &usize| unsafe { NonNull::new(self.own_value(frame, slot)) };
        shown
            .iter()
            .filter_map(move |slot| bound(slot).map(|value| (self.names[*slot], value)))
    }

    /// Returns the variables of a function in `locals`, the mapping of its frame: the name ID and value of each. Leaves
    /// out what the program added to the mapping.
    pub fn variables_in<'py>(&self, locals: &Bound<'py, PyDict>) -> Vec<(u32, Bound<'py, PyAny>)> {
        let mut found = Vec::new();
        for (key, value) in locals {
            let Ok(key) = key.cast_into::<PyString>() else {
                continue;
            };
            let name = unicode(&key);
            if let Some(slot) = self.slots.iter().position(|slot| slot.name == name) {
                found.push((slot, value));
            }
        }
        // Before 3.13, the mapping is a dict that keeps its order when a variable is unbound and bound again.
        if cfg!(not(Py_3_13)) {
            found.sort_by_key(|(slot, _)| *slot);
        }
        found
            .into_iter()
            .map(|(slot, value)| (self.names[slot], value))
            .collect()
    }

    /// Returns the value of a variable: the content of its slot, or of the cell in the slot. Borrowed; null if unbound.
    ///
    /// # Safety
    /// `frame` must be running and belong to this code, `slot` must be one of its slots, and the GIL must be held.
    #[inline]
    pub unsafe fn value(&self, frame: InterpreterFrame, slot: usize) -> *mut ffi::PyObject {
        // SAFETY: upheld by the caller.
        unsafe {
            match self.is_special {
                true => self.special_value(frame, slot),
                false => frame.slot(slot),
            }
        }
    }

    unsafe fn special_value(&self, frame: InterpreterFrame, slot: usize) -> *mut ffi::PyObject {
        // SAFETY: upheld by the caller.
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

    /// Returns the content of a slot, or of the cell in it, even if the slot is not shown.
    unsafe fn own_value(&self, frame: InterpreterFrame, slot: usize) -> *mut ffi::PyObject {
        // SAFETY: upheld by the caller; the type is checked before the object is read as a cell.
        unsafe {
            let value = frame.slot(slot);
            if self.slots[slot].in_cell && !value.is_null() && ffi::PyCell_Check(value) != 0 {
                return (*value.cast::<ffi::PyCellObject>()).ob_ref;
            }
            value
        }
    }

    /// Returns whether a variable is bound or, for the later of two slots, whether that slot is the one shown.
    unsafe fn is_bound(&self, frame: InterpreterFrame, slot: usize) -> bool {
        // SAFETY: upheld by the caller.
        unsafe {
            match self.slots[slot].twin {
                Twin::After(first) if self.own_value(frame, first).is_null() => !self.own_value(frame, slot).is_null(),
                _ => !self.value(frame, slot).is_null(),
            }
        }
    }

    /// Records in `bound`, one bit per slot, which slots are bound. Returns whether `bound` changed.
    ///
    /// # Safety
    /// `frame` must be running and belong to this code, and the GIL must be held.
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

    /// Returns the trace's ID for the name of a slot.
    pub fn name_id(&self, slot: u32) -> u32 {
        self.names[slot as usize]
    }

    /// Returns the slot that is shown for the variable with this name.
    pub fn slot_of(&self, name: u32) -> Option<usize> {
        let shown = |slot: &usize| self.names[*slot] == name && !self.is_hidden(*slot);
        (0..self.slots.len()).find(shown)
    }

    /// Returns whether a slot is hidden or shown only through another slot.
    fn is_hidden(&self, slot: usize) -> bool {
        matches!(self.slots[slot].twin, Twin::Hidden | Twin::After(_))
    }

    /// Returns the shape that follows `from` when the slots in `bound` are bound. Bound variables keep their order,
    /// unbound ones are dropped, and new ones are appended in slot order.
    pub fn shape_after(&mut self, from: u32, bound: &[u64], trace: &mut Trace) -> u32 {
        if let Some(&shape) = self.shapes[from as usize].next.get(bound) {
            return shape;
        }
        let is_bound = |slot: u32| bound[slot as usize / 64] >> (slot % 64) & 1 != 0;
        let old = &self.shapes[from as usize].order;
        let mut order: Vec<u32> = old.iter().copied().filter(|&slot| is_bound(slot)).collect();
        let is_new = |slot: &u32| is_bound(*slot) && !self.is_hidden(*slot as usize) && !old.contains(slot);
        let mut new: Vec<u32> = (0..self.slots.len() as u32).filter(is_new).collect();
        // A variable with two slots takes the position of the slot that is shown.
        new.sort_by_key(|&slot| match self.slots[slot as usize].twin {
            Twin::Or(other) if is_bound(other as u32) => other as u32,
            _ => slot,
        });
        order.extend(new);
        let shape = self.add_shape(trace, order);
        self.shapes[from as usize].next.insert(bound.into(), shape);
        shape
    }

    /// Returns the shape with this order of slots, adding it if necessary.
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

    /// Returns the ID of line `number` if it is cached.
    #[inline]
    pub fn line_id(&self, number: u32) -> Option<u32> {
        let index = number.wrapping_sub(self.first_line) as usize;
        self.lines.get(index).copied().filter(|&id| id != NO_LINE)
    }

    pub fn keep_line_id(&mut self, number: u32, id: u32) {
        // Lines of a code object rarely precede its first line, so such lines are not cached.
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

/// Pairs the slots of variables that have two.
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

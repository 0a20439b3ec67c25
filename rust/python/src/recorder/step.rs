//! One step of an activation: writes the variables that changed to the trace.

use pyo3::ffi;
use pyo3::prelude::*;
use rustc_hash::FxHashMap;

use cwm_trace::Trace;

use super::activation::{ABSENT, Activation, Snapshot};
use super::code::Code;
use super::cursor::{Slots, Variables};
use super::layout::{InterpreterFrame, compact_int};
use super::namespace::{Keys, dict_of};
use super::render::{Scratch, Style, render, update, write_scalar};
use super::scalar::{Scalar, write_int};
use super::tape::{FreeTapes, Known};

/// Length of the longest text of a 64-bit int.
const MAX_INT_CHARS: usize = 20;

pub struct Step<'py, 'a> {
    pub py: Python<'py>,
    pub trace: &'a mut Trace,
    pub style: Style,
    pub scratch: &'a mut Scratch,
    pub tapes: &'a mut FreeTapes,
}

impl Step<'_, '_> {
    /// Writes the variables of a function and returns the shape of the frame.
    ///
    /// # Safety
    /// `frame` must be running and belong to `code`, `activation` must be the activation of `frame`, and the GIL must
    /// be held.
    #[inline]
    pub unsafe fn slots(
        &mut self,
        activation: &mut Activation,
        frame: InterpreterFrame,
        code: &mut Code,
    ) -> PyResult<u32> {
        // SAFETY: upheld by the caller, here and below.
        unsafe {
            if code.note_bound(frame, &mut activation.bound) {
                self.reshape(activation, code);
            }
            let shape = &code.shapes[activation.shape as usize];
            let mut variables = Variables::Slots(Slots::new(self.py, frame, code, &shape.order));
            for (place, &slot) in shape.order.iter().enumerate() {
                let value = variables.value(place);
                self.take(&mut activation.snapshots[slot as usize], place, value, &mut variables)?;
            }
            Ok(shape.id)
        }
    }

    /// Updates the shape when the bound variables differ from those of the last step.
    #[inline(never)]
    fn reshape(&mut self, activation: &mut Activation, code: &mut Code) {
        activation.shape = code.shape_after(activation.shape, &activation.bound, self.trace);
        activation.snapshots.resize_with(code.slots.len(), || Snapshot::NEW);
        for (slot, snapshot) in activation.snapshots.iter_mut().enumerate() {
            if activation.bound[slot / 64] >> (slot % 64) & 1 == 0 {
                snapshot.clear(self.tapes);
            }
        }
    }

    /// Switches the activation of a body between reading its variables from slots and from its namespace, because an
    /// inlined comprehension begins or ends. Matches the snapshots to the variables by name.
    #[cold]
    pub fn change_place(&mut self, activation: &mut Activation, code: &mut Code) {
        let mut snapshots = std::mem::take(&mut activation.snapshots);
        activation.in_slots = !activation.in_slots;
        if !activation.in_slots {
            let order = &code.shapes[activation.shape as usize].order;
            activation.names = order.iter().map(|&slot| code.name_id(slot)).collect();
            let shown = order
                .iter()
                .map(|&slot| std::mem::replace(&mut snapshots[slot as usize], Snapshot::NEW));
            activation.snapshots = shown.collect();
            return;
        }
        activation.snapshots.resize_with(code.slots.len(), || Snapshot::NEW);
        activation.bound.clear();
        activation.bound.resize(code.slots.len().div_ceil(64), 0);
        let mut order = Vec::new();
        for (name, snapshot) in activation.names.drain(..).zip(snapshots) {
            if let Some(slot) = code.slot_of(name) {
                activation.bound[slot / 64] |= 1 << (slot % 64);
                activation.snapshots[slot] = snapshot;
                order.push(slot as u32);
            }
        }
        activation.shape = code.add_shape(self.trace, order);
    }

    /// Writes the variables of a module or class body, or of a function whose slots are not known, and returns the shape
    /// of the frame.
    ///
    /// # Safety
    /// `frame` must be running and belong to `code`, `activation` must be the activation of `frame`, and the GIL must
    /// be held.
    #[inline(never)]
    pub unsafe fn mapping(
        &mut self,
        activation: &mut Activation,
        frame: InterpreterFrame,
        code: &Code,
        keys: &mut Keys,
    ) -> PyResult<u32> {
        // SAFETY: upheld by the caller; values borrowed from slots are held before other code runs.
        let mut values = unsafe {
            let mut values = match frame.locals(self.py)? {
                Some(locals) if code.optimized => code.variables_in(&dict_of(locals)?),
                Some(locals) => keys.read(locals, self.trace)?,
                None => Vec::new(),
            };
            for (name, value) in code.beside_namespace(frame) {
                let value = Bound::from_borrowed_ptr(self.py, value.as_ptr());
                match values.iter_mut().find(|(other, _)| *other == name) {
                    Some((_, hidden)) => *hidden = value,
                    None => values.push((name, value)),
                }
            }
            values
        };
        if !values.iter().map(|(name, _)| name).eq(&activation.names) {
            order_as_shown(&mut values, &activation.names);
            let mut before: FxHashMap<u32, Snapshot> = FxHashMap::default();
            before.extend(activation.names.drain(..).zip(activation.snapshots.drain(..)));
            for (name, _) in &values {
                activation.names.push(*name);
                let snapshot = before.remove(name).unwrap_or(Snapshot::NEW);
                activation.snapshots.push(snapshot);
            }
        }
        let variables = &mut Variables::Held;
        for (place, (_, value)) in values.iter().enumerate() {
            // SAFETY: `values` keeps the value alive.
            unsafe { self.take(&mut activation.snapshots[place], place, value.as_ptr(), variables)? };
        }
        Ok(self.trace.intern_shape(&activation.names))
    }

    /// Writes the variable at `place` of the frame if it changed.
    ///
    /// # Safety
    /// `value` must be alive, either held or one of `variables`, and the GIL must be held.
    #[inline]
    unsafe fn take(
        &mut self,
        snapshot: &mut Snapshot,
        place: usize,
        value: *mut ffi::PyObject,
        variables: &mut Variables<'_>,
    ) -> PyResult<()> {
        // SAFETY: upheld by the caller, here and below. A snapshot that identifies a value has shown a text.
        unsafe {
            // Fast path for counters, which change most often.
            if let Known::Int(before) = snapshot.known
                && ffi::Py_TYPE(value) == &raw mut ffi::PyLong_Type
                && let Some(number) = compact_int(value)
                && self.style.max_chars >= MAX_INT_CHARS
            {
                if number != before {
                    // Different numbers always have different texts.
                    write_int(number, self.trace.open_value());
                    snapshot.known = Known::Int(number);
                    snapshot.text = self.trace.keep_change(place as u32);
                }
                return Ok(());
            }
            let (known, text) = (snapshot.known, snapshot.text);
            if known.is(value, || self.trace.value(text)) {
                return Ok(());
            }
            self.write(snapshot, place, value, variables)
        }
    }

    /// Writes a variable that may have changed, unless its text is the same.
    #[inline(never)]
    unsafe fn write(
        &mut self,
        snapshot: &mut Snapshot,
        place: usize,
        value: *mut ffi::PyObject,
        variables: &mut Variables<'_>,
    ) -> PyResult<()> {
        let before = snapshot.text;
        // SAFETY: upheld by the caller.
        unsafe {
            if snapshot.is_copy_of(value) {
                return Ok(());
            }
            if let Some(scalar) = Scalar::of(value) {
                let known = write_scalar(scalar, self.style, self.trace.open_value());
                snapshot.remember(known, value, self.tapes);
            } else if self.style.walks(value) {
                let old = (snapshot.known == Known::TAPE).then(|| self.trace.value_start(before));
                let tape = snapshot
                    .tape
                    .get_or_insert_with(|| self.tapes.pop().unwrap_or_default());
                // The tape is unusable until it is complete again.
                snapshot.known = Known::Text;
                let buffers = (variables, &mut *self.scratch);
                let changed = update(
                    self.py,
                    value,
                    self.style,
                    buffers,
                    (tape, old),
                    self.trace.open_value(),
                )?;
                snapshot.known = Known::TAPE;
                if !changed {
                    return Ok(());
                }
            } else {
                snapshot.known = Known::Text;
                let buffers = (variables, &mut *self.scratch);
                render(self.py, value, self.style, buffers, self.trace.open_value())?;
                snapshot.remember(Known::Text, value, self.tapes);
            }
        }
        if before != ABSENT && self.trace.value(before) == self.trace.open_text() {
            self.trace.drop_value();
        } else {
            snapshot.text = self.trace.keep_change(place as u32);
        }
        Ok(())
    }

    /// Renders a value that is shown once, at the end of the value log.
    ///
    /// # Safety
    /// `value` must be alive and held, and the GIL must be held.
    pub unsafe fn value(&mut self, value: *mut ffi::PyObject) -> PyResult<()> {
        let out = self.trace.open_value();
        // SAFETY: upheld by the caller.
        unsafe {
            if let Some(scalar) = Scalar::of(value) {
                write_scalar(scalar, self.style, out);
                return Ok(());
            }
            let buffers = (&mut Variables::Held, &mut *self.scratch);
            render(self.py, value, self.style, buffers, out)
        }
    }
}

/// Sorts values into the order of the last frame. New values come last, in their own order.
fn order_as_shown(values: &mut [(u32, Bound<'_, PyAny>)], shown: &[u32]) {
    let places: FxHashMap<u32, usize> = shown.iter().enumerate().map(|(place, name)| (*name, place)).collect();
    values.sort_by_key(|(name, _)| places.get(name).copied().unwrap_or(usize::MAX));
}

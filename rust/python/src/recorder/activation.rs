//! Running activations, and the last shown state of each of their variables.

use pyo3::ffi;

use super::layout::InterpreterFrame;
use super::tape::{Content, FreeTapes, Known, Tape};

/// Stands for the change that wrote a variable's text if no change did.
pub const ABSENT: u32 = u32::MAX;

/// A variable as the last CALL or LINE frame of its activation showed it.
pub struct Snapshot {
    pub known: Known,
    /// Change that wrote the text shown last; [`ABSENT`] if there is none.
    pub text: u32,
    /// Tape of that text if `known` is [`Known::TAPE`]; content of the value if `known` is a [`Known::Copy`].
    pub tape: Option<Box<Tape>>,
}

impl Snapshot {
    pub const NEW: Snapshot = Snapshot {
        known: Known::Text,
        text: ABSENT,
        tape: None,
    };

    /// Remembers a value that was shown in one piece, by its content if `known` does not identify it.
    ///
    /// # Safety
    /// `value` must be alive, and the GIL must be held.
    #[inline]
    pub unsafe fn remember(&mut self, known: Known, value: *mut ffi::PyObject, tapes: &mut FreeTapes) {
        self.known = known;
        if known != Known::Text {
            return;
        }
        // SAFETY: upheld by the caller.
        if let Some((content, bytes)) = unsafe { Content::of(value) } {
            let tape = self.tape.get_or_insert_with(|| tapes.pop().unwrap_or_default());
            tape.copy.clear();
            tape.copy.extend_from_slice(bytes);
            self.known = Known::Copy(content);
        }
    }

    /// Returns whether `value` has the remembered content.
    ///
    /// # Safety
    /// `value` must be alive, and the GIL must be held.
    #[inline]
    pub unsafe fn is_copy_of(&self, value: *mut ffi::PyObject) -> bool {
        let (Known::Copy(content), Some(tape)) = (self.known, &self.tape) else {
            return false;
        };
        // SAFETY: upheld by the caller.
        let now = unsafe { Content::of(value) };
        now == Some((content, tape.copy.as_slice()))
    }

    /// Forgets the variable and returns its tape to the free tapes.
    pub fn clear(&mut self, tapes: &mut FreeTapes) {
        self.known = Known::Text;
        self.text = ABSENT;
        tapes.extend(self.tape.take());
    }
}

/// A running call, generator step, or body.
pub struct Activation {
    pub frame: InterpreterFrame,
    /// Number of the code object.
    pub code: usize,
    /// Whether variables are read from slots rather than from a namespace.
    pub in_slots: bool,
    /// For a function: current shape, as an index into the shapes of its code, and the slots that are bound.
    pub shape: u32,
    pub bound: Vec<u64>,
    /// Snapshots by slot; for a module or class body, in display order.
    pub snapshots: Vec<Snapshot>,
    /// Name IDs of the variables of a body, in display order.
    pub names: Vec<u32>,
    /// Line and text of the last EXCEPTION event since the last LINE event, if only calls are shown.
    pub exception: Option<(u32, Vec<u8>)>,
}

impl Activation {
    pub fn new(frame: InterpreterFrame, code: usize) -> Activation {
        Activation {
            frame,
            code,
            in_slots: true,
            shape: 0,
            bound: Vec::new(),
            snapshots: Vec::new(),
            names: Vec::new(),
            exception: None,
        }
    }

    /// Resets to an activation that has shown nothing.
    pub fn clear(&mut self, tapes: &mut FreeTapes) {
        for snapshot in &mut self.snapshots {
            snapshot.clear(tapes);
        }
        self.bound.clear();
        self.names.clear();
        self.shape = 0;
        self.exception = None;
    }
}

/// Running activations, outermost first. Ended activations stay behind the running ones so that later activations can
/// reuse their allocations.
#[derive(Default)]
pub struct Stack {
    activations: Vec<Activation>,
    depth: usize,
}

impl Stack {
    #[inline]
    pub fn running(&self) -> &[Activation] {
        &self.activations[..self.depth]
    }

    /// Returns the running activation at `index`.
    #[inline]
    pub fn at(&mut self, index: usize) -> &mut Activation {
        &mut self.activations[index]
    }

    /// Returns the index of the innermost activation of `frame`.
    pub fn position(&self, frame: InterpreterFrame) -> Option<usize> {
        self.running().iter().rposition(|activation| activation.frame == frame)
    }

    /// Begins an activation and returns its index.
    #[inline]
    pub fn push(&mut self, frame: InterpreterFrame, code: usize) -> usize {
        match self.activations.get_mut(self.depth) {
            Some(ended) => {
                ended.frame = frame;
                ended.code = code;
                ended.in_slots = true;
            }
            None => self.activations.push(Activation::new(frame, code)),
        }
        self.depth += 1;
        self.depth - 1
    }

    /// Ends the activation at `index`, usually the innermost one.
    #[inline]
    pub fn end(&mut self, index: usize, tapes: &mut FreeTapes) {
        self.activations[index].clear(tapes);
        self.activations[index..self.depth].rotate_left(1);
        self.depth -= 1;
    }
    /// Ends all activations except those in `running`, which pairs each frame with the number of its code object.
    pub fn end_others(&mut self, running: &[(InterpreterFrame, usize)], tapes: &mut FreeTapes) {
        for index in (0..self.depth).rev() {
            let activation = &self.activations[index];
            if !running.contains(&(activation.frame, activation.code)) {
                self.end(index, tapes);
            }
        }
    }
}

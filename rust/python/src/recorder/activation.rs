//! Running activations, and what each of their variables was when it was shown last.

use pyo3::ffi;

use super::layout::InterpreterFrame;
use super::tape::{Content, FreeTapes, Known, Tape};

/// The change that wrote a variable's text, where none did.
pub const ABSENT: u32 = u32::MAX;

/// A variable as the last CALL or LINE frame of its activation showed it.
pub struct Snapshot {
    pub known: Known,
    /// The change that wrote the text shown last; [`ABSENT`] when none was.
    pub text: u32,
    /// The tape of that text where `known` is [`Known::TAPE`], or the content of a [`Known::Copy`].
    pub tape: Option<Box<Tape>>,
}

impl Snapshot {
    pub const NEW: Snapshot = Snapshot {
        known: Known::Text,
        text: ABSENT,
        tape: None,
    };

    /// Remembers a value that was shown in one piece: where `known` does not tell it, by its content.
    ///
    /// # Safety
    /// `value` is alive and the GIL is held.
    #[inline]
    pub unsafe fn remember(&mut self, known: Known, value: *mut ffi::PyObject, tapes: &mut FreeTapes) {
        self.known = known;
        if known != Known::Text {
            return;
        }
        // SAFETY: the caller's promise.
        if let Some((content, bytes)) = unsafe { Content::of(value) } {
            let tape = self.tape.get_or_insert_with(|| tapes.pop().unwrap_or_default());
            tape.copy.clear();
            tape.copy.extend_from_slice(bytes);
            self.known = Known::Copy(content);
        }
    }

    /// Whether `value` has the content that was remembered.
    ///
    /// # Safety
    /// `value` is alive and the GIL is held.
    #[inline]
    pub unsafe fn is_copy_of(&self, value: *mut ffi::PyObject) -> bool {
        let (Known::Copy(content), Some(tape)) = (self.known, &self.tape) else {
            return false;
        };
        // SAFETY: the caller's promise.
        let now = unsafe { Content::of(value) };
        now == Some((content, tape.copy.as_slice()))
    }

    /// Forgets the variable, and gives its tape back to those that are free.
    pub fn clear(&mut self, tapes: &mut FreeTapes) {
        self.known = Known::Text;
        self.text = ABSENT;
        tapes.extend(self.tape.take());
    }
}

/// A running call, generator step, or body.
pub struct Activation {
    pub frame: InterpreterFrame,
    /// The number of its code object.
    pub code: usize,
    /// Whether its variables are read from slots, or from a namespace.
    pub in_slots: bool,
    /// Of a function: its shape, among those of its code, and which slots are bound.
    pub shape: u32,
    pub bound: Vec<u64>,
    /// By slot; of the body of a module or class in the order in which they are shown.
    pub snapshots: Vec<Snapshot>,
    /// The names of the variables of a body, in that order.
    pub names: Vec<u32>,
    /// The line and text of the last EXCEPTION event since the last LINE, where only calls are shown.
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

    /// Makes it that of an activation that has shown nothing yet.
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

/// The activations that run, outermost first. Those that ended stay behind them: their allocations serve the next ones.
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

    /// The running activation at `index`.
    #[inline]
    pub fn at(&mut self, index: usize) -> &mut Activation {
        &mut self.activations[index]
    }

    /// The innermost activation of `frame`.
    pub fn position(&self, frame: InterpreterFrame) -> Option<usize> {
        self.running().iter().rposition(|activation| activation.frame == frame)
    }

    /// Begins one, and gives its index.
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

    /// Ends the activation at `index`, mostly the innermost one.
    #[inline]
    pub fn end(&mut self, index: usize, tapes: &mut FreeTapes) {
        self.activations[index].clear(tapes);
        self.activations[index..self.depth].rotate_left(1);
        self.depth -= 1;
    }
    /// Ends all but those of `running` frames, which come with the numbers of their code objects.
    pub fn end_others(&mut self, running: &[(InterpreterFrame, usize)], tapes: &mut FreeTapes) {
        for index in (0..self.depth).rev() {
            let activation = &self.activations[index];
            if !running.contains(&(activation.frame, activation.code)) {
                self.end(index, tapes);
            }
        }
    }
}

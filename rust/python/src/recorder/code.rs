//! What the recorder needs to know of a code object, looked up once and kept.

use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use cwm_trace::Trace;

const CO_OPTIMIZED: u32 = 0x1;
const NO_LINE: u32 = u32::MAX;

/// A slot of a frame: the variable it holds, and whether the value lies in a cell.
pub struct Slot {
    pub name: Vec<u8>,
    pub in_cell: bool,
}

/// A code object met during the recording.
pub struct Code {
    /// Held so that no other code object can take its address.
    _object: Py<PyAny>,
    pub in_scope: bool,
    /// Index of its file among those of the recording.
    pub file: u32,
    /// Whether variables live in slots (a function) rather than in a namespace (the body of a module or class).
    pub optimized: bool,
    pub slots: Vec<Slot>,
    /// Names from the first `hidden` slots of a class or module body belong to inlined comprehensions.
    pub hidden: usize,
    /// `co_name`.
    pub name: String,
    pub first_line: u32,
    /// Name ids of the slots and line ids by number, in the trace of the same generation.
    pub generation: u64,
    pub names: Vec<u32>,
    lines: Vec<u32>,
}

impl Code {
    /// A code object outside the scope: nothing more needs to be known of it.
    pub fn outside(object: Py<PyAny>) -> Code {
        Code {
            _object: object,
            in_scope: false,
            file: 0,
            optimized: true,
            slots: Vec::new(),
            hidden: 0,
            name: String::new(),
            first_line: 0,
            generation: 0,
            names: Vec::new(),
            lines: Vec::new(),
        }
    }

    pub fn read(object: &Bound<'_, PyAny>, file: u32) -> PyResult<Code> {
        let names = |attribute: &str| -> PyResult<Vec<Vec<u8>>> {
            let names = object.getattr(attribute)?.cast_into::<PyTuple>()?;
            names
                .iter()
                .map(|name| Ok(name.cast_into::<PyString>()?.to_str()?.as_bytes().to_vec()))
                .collect()
        };
        let (variables, cells, free) = (names("co_varnames")?, names("co_cellvars")?, names("co_freevars")?);
        let hidden = variables.len();
        let mut slots: Vec<Slot> = variables
            .into_iter()
            .map(|name| Slot {
                in_cell: cells.contains(&name),
                name,
            })
            .collect();
        // An argument that is a cell keeps its place among the arguments.
        let own_cells = cells
            .into_iter()
            .filter(|name| !slots.iter().any(|slot| slot.name == *name));
        let own_cells: Vec<Vec<u8>> = own_cells.collect();
        slots.extend(
            own_cells
                .into_iter()
                .chain(free)
                .map(|name| Slot { name, in_cell: true }),
        );
        Ok(Code {
            _object: object.clone().unbind(),
            in_scope: true,
            file,
            optimized: object.getattr("co_flags")?.extract::<u32>()? & CO_OPTIMIZED != 0,
            slots,
            hidden,
            name: object.getattr("co_name")?.extract()?,
            first_line: object.getattr("co_firstlineno")?.extract()?,
            generation: 0,
            names: Vec::new(),
            lines: Vec::new(),
        })
    }

    /// Forgets the ids of an earlier trace and interns the names in `trace`.
    pub fn enter(&mut self, trace: &mut Trace, generation: u64) {
        self.generation = generation;
        self.lines.clear();
        self.names.clear();
        self.names
            .extend(self.slots.iter().map(|slot| trace.intern_name(&slot.name)));
    }

    /// The cached id of line `number`, which `add` makes when it is new.
    pub fn line_id(&mut self, number: u32, add: impl FnOnce() -> u32) -> u32 {
        // A code object's lines rarely come before its first; those that do are not cached.
        let Some(index) = number
            .checked_sub(self.first_line)
            .map(|i| i as usize)
            .filter(|&i| i < 1 << 20)
        else {
            return add();
        };
        if index >= self.lines.len() {
            self.lines.resize(index + 1, NO_LINE);
        }
        if self.lines[index] == NO_LINE {
            self.lines[index] = add();
        }
        self.lines[index]
    }
}

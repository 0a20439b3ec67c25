//! Trace in memory: rows of frames and changes, interned lines, names, and shapes, and a log of value texts.

use rustc_hash::FxHashMap;

use crate::special::Special;

/// Event of a frame: one of the four events of `sys.settrace`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Event {
    Call = 0,
    Line = 1,
    Return = 2,
    Exception = 3,
}

impl Event {
    pub const ALL: [Event; 4] = [Event::Call, Event::Line, Event::Return, Event::Exception];

    /// Returns `"call"`, `"line"`, `"return"`, or `"exception"`.
    pub const fn name(self) -> &'static str {
        match self {
            Event::Call => "call",
            Event::Line => "line",
            Event::Return => "return",
            Event::Exception => "exception",
        }
    }

    /// Returns the token that opens a frame of this event.
    pub const fn special(self) -> Special {
        match self {
            Event::Call => Special::CallSep,
            Event::Line => Special::LineSep,
            Event::Return => Special::ReturnSep,
            Event::Exception => Special::ExceptionSep,
        }
    }

    /// Returns whether frames of this event show local variables (CALL and LINE) rather than a value (RETURN and
    /// EXCEPTION).
    pub const fn has_locals(self) -> bool {
        matches!(self, Event::Call | Event::Line)
    }
}

/// Source line that frames show.
///
/// `number` is the line number in the file, or 0 if unknown. `text` ends in one newline, or is empty if the source is
/// unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    pub number: u32,
    pub text: String,
}

/// Outcome of the recorded program, with the rendered result or exception.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Returned(Vec<u8>),
    Raised(Vec<u8>),
}

/// Value of a variable in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown<'a> {
    /// `..`: the same value as in the previous frame of the activation.
    Unchanged,
    /// Rendered text, in UTF-8 that may contain lone surrogates because a `__repr__` can return them.
    Text(&'a [u8]),
}

/// Stored frame: a single row, so that appending a frame checks the capacity only once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameRow {
    /// Event in the two bits above the line ID.
    event_and_line: u32,
    /// Shape of a CALL or LINE frame; 0 for other events.
    pub(crate) shape: u32,
    /// End of the frame's changes, which begin at the end of the previous frame's changes.
    pub(crate) changes_end: u32,
}

impl FrameRow {
    const LINE_BITS: u32 = 30;

    #[inline]
    pub(crate) fn new(event: Event, line: u32, shape: u32, changes_end: u32) -> FrameRow {
        debug_assert!((line as usize) < Trace::MAX_LINES);
        FrameRow {
            event_and_line: (event as u32) << Self::LINE_BITS | line,
            shape,
            changes_end,
        }
    }

    #[inline]
    pub(crate) fn event(self) -> Event {
        Event::ALL[(self.event_and_line >> Self::LINE_BITS) as usize]
    }

    #[inline]
    pub(crate) fn line(self) -> u32 {
        self.event_and_line & ((1 << Self::LINE_BITS) - 1)
    }
}

/// Changed variable, or the value of a RETURN or EXCEPTION frame. Packing reduces it from 16 to 12 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
pub(crate) struct Change {
    /// End of the text in the value log; the text begins at the end of the previous one.
    pub(crate) end: u64,
    /// Position of the variable in the frame's shape; 0 in RETURN and EXCEPTION frames.
    pub(crate) slot: u32,
}

/// Recorded or parsed execution.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Source text shown before the frames.
    pub context: String,
    /// Outcome of the program; `None` if unknown (parsed traces, recordings stopped by a limit).
    pub outcome: Option<Outcome>,
    /// Limit that stopped the recording, if any: `"max_frames"`, `"max_bytes"`, or `"max_seconds"`.
    pub truncated: Option<String>,
    /// Output of the program; `None` if it was not captured.
    pub output: Option<String>,
    pub(crate) lines: Vec<Line>,
    pub(crate) names: Vec<Vec<u8>>,
    /// Shapes: ordered lists of the names that CALL and LINE frames show.
    pub(crate) shapes: Vec<Box<[u32]>>,
    pub(crate) frames: Vec<FrameRow>,
    pub(crate) changes: Vec<Change>,
    /// Concatenated texts of the changes, followed by the text being rendered.
    pub(crate) values: Vec<u8>,
    name_ids: FxHashMap<Vec<u8>, u32>,
    shape_ids: FxHashMap<Box<[u32]>, u32>,
}

impl Trace {
    /// Maximum number of lines: line IDs have 30 bits.
    pub(crate) const MAX_LINES: usize = 1 << FrameRow::LINE_BITS;
    /// Maximum number of frames: each frame can show a line of its own.
    pub(crate) const MAX_FRAMES: usize = Trace::MAX_LINES;
    /// Half the range of 32 bits, so that the frame that reaches this limit is still complete.
    pub(crate) const MAX_CHANGES: usize = 1 << 31;

    pub fn new(context: String) -> Trace {
        Trace {
            context,
            ..Trace::default()
        }
    }

    /// Returns the number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Returns whether the IDs of frames, lines, or changes are exhausted, so that no more frames may be added. Such a
    /// trace takes at least 12 GiB of memory.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.frames.len() >= Trace::MAX_FRAMES || self.changes.len() >= Trace::MAX_CHANGES
    }

    /// Returns the frame at `index`, which must be less than [`Trace::len`].
    pub fn frame(&self, index: usize) -> FrameRef<'_> {
        assert!(index < self.len(), "frame {index} of a trace of {} frames", self.len());
        FrameRef { trace: self, index }
    }

    pub fn frames(&self) -> impl ExactSizeIterator<Item = FrameRef<'_>> {
        (0..self.len()).map(|index| FrameRef { trace: self, index })
    }

    /// Returns the source lines, indexed by [`FrameRef::line_id`].
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    pub fn name(&self, id: u32) -> &[u8] {
        &self.names[id as usize]
    }

    /// Returns the number of shapes, which is one more than the largest shape ID.
    pub fn shape_count(&self) -> usize {
        self.shapes.len()
    }

    pub fn shape(&self, id: u32) -> &[u32] {
        &self.shapes[id as usize]
    }

    /// Returns the text of change `id`.
    #[inline]
    pub fn value(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.changes[id - 1].end };
        &self.values[start as usize..self.changes[id].end as usize]
    }

    /// Returns the start of the text of change `id` in the log that [`Trace::open_value`] returns.
    #[inline]
    pub fn value_start(&self, id: u32) -> usize {
        id.checked_sub(1)
            .map_or(0, |before| self.changes[before as usize].end as usize)
    }

    #[inline]
    pub(crate) fn change_slot(&self, id: u32) -> u32 {
        self.changes[id as usize].slot
    }

    /// Returns the memory of the frames in bytes, without spare capacity. `max_bytes` limits this size.
    #[inline]
    pub fn frame_bytes(&self) -> usize {
        size_of_val(&*self.frames) + size_of_val(&*self.changes) + self.values.len()
    }

    /// Adds a source line and returns its ID. Does not deduplicate: equal lines may have several IDs.
    ///
    /// Panics if the trace has 2^30 lines. This cannot happen if the caller adds at most one line per frame and stops
    /// when the trace [is full](Trace::is_full).
    pub fn add_line(&mut self, line: Line) -> u32 {
        assert!(self.lines.len() < Trace::MAX_LINES, "too many source lines");
        self.lines.push(line);
        (self.lines.len() - 1) as u32
    }

    /// Sets the text of every line from its ID and number, because a recording learns the numbers first.
    pub fn set_line_texts(&mut self, mut text: impl FnMut(usize, u32) -> String) {
        for (id, line) in self.lines.iter_mut().enumerate() {
            line.text = text(id, line.number);
        }
    }

    /// Returns the ID of a variable name, and adds the name if it is new.
    pub fn intern_name(&mut self, name: &[u8]) -> u32 {
        if let Some(&id) = self.name_ids.get(name) {
            return id;
        }
        let id = self.names.len() as u32;
        self.names.push(name.to_vec());
        self.name_ids.insert(name.to_vec(), id);
        id
    }

    /// Returns the ID of an ordered list of names, and adds the list if it is new.
    pub fn intern_shape(&mut self, names: &[u32]) -> u32 {
        if let Some(&id) = self.shape_ids.get(names) {
            return id;
        }
        let id = self.shapes.len() as u32;
        self.shapes.push(names.into());
        self.shape_ids.insert(names.into(), id);
        id
    }

    /// Returns the value log, to which the caller appends a rendered value. Keep the value with [`Trace::keep_change`]
    /// or [`Trace::push_value_frame`], or drop it with [`Trace::drop_value`].
    #[inline]
    pub fn open_value(&mut self) -> &mut Vec<u8> {
        &mut self.values
    }

    /// Returns the bytes rendered since the last kept value.
    #[inline]
    pub fn open_text(&self) -> &[u8] {
        &self.values[self.open_start()..]
    }

    #[inline]
    pub(crate) fn open_start(&self) -> usize {
        self.changes.last().map_or(0, |change| change.end as usize)
    }

    /// Keeps the rendered text as the value of the variable at `slot` of the next CALL or LINE frame, and returns the
    /// ID of the change. The caller must keep slots in ascending order.
    #[inline]
    pub fn keep_change(&mut self, slot: u32) -> u32 {
        let id = self.changes.len() as u32;
        self.changes.push(Change {
            end: self.values.len() as u64,
            slot,
        });
        id
    }

    /// Drops the text rendered since the last kept value.
    #[inline]
    pub fn drop_value(&mut self) {
        let start = self.open_start();
        self.values.truncate(start);
    }

    /// Closes a CALL or LINE frame that shows the variables of `shape`. Variables kept as changes show their values.
    ///
    /// Panics if the number of changes exceeds 32 bits. This cannot happen if the caller stops when the trace
    /// [is full](Trace::is_full).
    #[inline]
    pub fn push_locals_frame(&mut self, event: Event, line: u32, shape: u32) {
        debug_assert!(event.has_locals());
        self.push_frame(event, line, shape);
    }

    /// Adds a RETURN or EXCEPTION frame whose value is the rendered text.
    ///
    /// Panics if the number of changes exceeds 32 bits. This cannot happen if the caller stops when the trace
    /// [is full](Trace::is_full).
    #[inline]
    pub fn push_value_frame(&mut self, event: Event, line: u32) {
        debug_assert!(!event.has_locals());
        self.keep_change(0);
        self.push_frame(event, line, 0);
    }

    #[inline]
    fn push_frame(&mut self, event: Event, line: u32, shape: u32) {
        assert!(self.changes.len() <= u32::MAX as usize, "too many changed values");
        self.frames
            .push(FrameRow::new(event, line, shape, self.changes.len() as u32));
    }

    /// Frees spare capacity.
    pub fn shrink_to_fit(&mut self) {
        self.frames.shrink_to_fit();
        self.changes.shrink_to_fit();
        self.values.shrink_to_fit();
    }

    /// Returns the outcome of the program, derived from the frames of a complete trace.
    ///
    /// The only outermost activation either returns in the last frame, or is unwound by an EXCEPTION frame right before
    /// it. Returns `None` if there are several outermost activations, for example of a resumed generator, because the
    /// value of the last one need not be the result.
    ///
    /// If the first frame is not a CALL, as in a prediction, the frames begin within an activation that was called
    /// earlier.
    pub fn shown_outcome(&self) -> Option<Outcome> {
        let last = self.len().checked_sub(1)?;
        let mut depth = u64::from(self.frame(0).event() != Event::Call);
        for frame in self.frames() {
            match frame.event() {
                Event::Call => depth += 1,
                Event::Return => depth = depth.checked_sub(1)?,
                Event::Line | Event::Exception => {}
            }
            if (depth == 0) != (frame.index() == last) {
                return None;
            }
        }
        let value = self.frame(last).arg()?;
        let before = last.checked_sub(1).map(|index| self.frame(index));
        match before.filter(|frame| frame.event() == Event::Exception && value == b"None") {
            Some(exception) => exception.arg().map(|text| Outcome::Raised(text.to_vec())),
            None => Some(Outcome::Returned(value.to_vec())),
        }
    }

    /// Returns the number of changes in closed frames. Later changes belong to the open frame.
    pub(crate) fn closed_changes(&self) -> usize {
        self.frames.last().map_or(0, |frame| frame.changes_end as usize)
    }

    /// Drops the changes and text of the open frame.
    pub fn drop_open_frame(&mut self) {
        self.changes.truncate(self.closed_changes());
        self.drop_value();
    }
}

/// Reference to a frame of a trace.
#[derive(Clone, Copy)]
pub struct FrameRef<'a> {
    trace: &'a Trace,
    index: usize,
}

impl<'a> FrameRef<'a> {
    pub fn index(self) -> usize {
        self.index
    }

    fn row(self) -> FrameRow {
        self.trace.frames[self.index]
    }

    pub fn event(self) -> Event {
        self.row().event()
    }

    /// Returns the index of the source line in [`Trace::lines`].
    pub fn line_id(self) -> u32 {
        self.row().line()
    }

    pub fn line(self) -> &'a Line {
        &self.trace.lines[self.line_id() as usize]
    }

    /// Returns the interned list of names of a CALL or LINE frame.
    pub fn shape(self) -> Option<&'a [u32]> {
        let row = self.row();
        row.event().has_locals().then(|| self.trace.shape(row.shape))
    }

    /// Returns the IDs of the frame's changes, in ascending order of slots. A RETURN or EXCEPTION frame has one change,
    /// its value.
    pub fn changes(self) -> std::ops::Range<u32> {
        let start = match self.index.checked_sub(1) {
            Some(previous) => self.trace.frames[previous].changes_end,
            None => 0,
        };
        start..self.row().changes_end
    }

    /// Returns the ID of the list of names of a CALL or LINE frame.
    pub fn shape_id(self) -> u32 {
        self.row().shape
    }

    /// Returns the value of a RETURN or EXCEPTION frame.
    pub fn arg(self) -> Option<&'a [u8]> {
        match self.event().has_locals() {
            true => None,
            false => Some(self.trace.value(self.changes().start)),
        }
    }

    /// Returns the variables that a CALL or LINE frame shows, in order. Other frames have none.
    pub fn locals(self) -> impl Iterator<Item = (&'a [u8], Shown<'a>)> {
        let trace = self.trace;
        let mut changes = self.changes().peekable();
        self.shape()
            .unwrap_or(&[])
            .iter()
            .enumerate()
            .map(move |(slot, &name)| {
                let shown = match changes.next_if(|&id| trace.change_slot(id) as usize == slot) {
                    Some(id) => Shown::Text(trace.value(id)),
                    None => Shown::Unchanged,
                };
                (trace.name(name), shown)
            })
    }
}

/// Compares the content that the frames show, including the order of variables.
impl PartialEq for FrameRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.event() == other.event()
            && self.line() == other.line()
            && self.arg() == other.arg()
            && self.locals().eq(other.locals())
    }
}

/// Compares the content that the traces show, regardless of their IDs.
impl PartialEq for Trace {
    fn eq(&self, other: &Self) -> bool {
        self.context == other.context
            && self.outcome == other.outcome
            && self.truncated == other.truncated
            && self.output == other.output
            && self.len() == other.len()
            && self.frames().eq(other.frames())
    }
}

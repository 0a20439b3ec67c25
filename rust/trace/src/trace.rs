//! The trace in memory: rows of frames and changes over interned lines, names, shapes and a log of value texts.

use rustc_hash::FxHashMap;

use crate::special::Special;

/// What happened at a frame: the four events of `sys.settrace`.
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

    /// `"call"`, `"line"`, `"return"` or `"exception"`.
    pub const fn name(self) -> &'static str {
        match self {
            Event::Call => "call",
            Event::Line => "line",
            Event::Return => "return",
            Event::Exception => "exception",
        }
    }

    /// The token that opens a frame of this event.
    pub const fn special(self) -> Special {
        match self {
            Event::Call => Special::CallSep,
            Event::Line => Special::LineSep,
            Event::Return => Special::ReturnSep,
            Event::Exception => Special::ExceptionSep,
        }
    }

    /// Whether frames of this event show local variables (CALL and LINE) rather than a value (RETURN and EXCEPTION).
    pub const fn has_locals(self) -> bool {
        matches!(self, Event::Call | Event::Line)
    }
}

/// A source line as frames show it: its number in its file (0 when unknown) and its text, ending in one newline, or
/// empty where no source is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    pub number: u32,
    pub text: String,
}

/// How the recorded program ended, with the rendered result or exception.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Returned(Vec<u8>),
    Raised(Vec<u8>),
}

/// A variable's value as a frame shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown<'a> {
    /// `..`: as in the previous frame of the same activation.
    Unchanged,
    /// Rendered text, in UTF-8 that may hold lone surrogates (a `__repr__` can return them).
    Text(&'a [u8]),
}

/// A frame as it is kept: one row, so that adding one checks for room once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameRow {
    /// The event in the two bits above the line's id.
    event_and_line: u32,
    /// The shape of a CALL or LINE frame; 0 elsewhere.
    pub(crate) shape: u32,
    /// Where the frame's changes end; they begin where the previous frame's end.
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

/// A changed variable, or the value of a RETURN or EXCEPTION frame. Packed: 12 bytes rather than 16.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
pub(crate) struct Change {
    /// Where its text ends in the value log; it begins where the previous one ends.
    pub(crate) end: u64,
    /// The place of the variable in the frame's shape; 0 in RETURN and EXCEPTION frames.
    pub(crate) slot: u32,
}

/// A recorded or parsed execution.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The source text shown before the frames.
    pub context: String,
    /// How the program ended; `None` where that is not known (parsed traces, recordings cut by a limit).
    pub outcome: Option<Outcome>,
    /// The limit that ended the recording, if one did: `"max_frames"`, `"max_bytes"` or `"max_seconds"`.
    pub truncated: Option<String>,
    /// What the program printed; `None` where that was not captured.
    pub output: Option<String>,
    pub(crate) lines: Vec<Line>,
    pub(crate) names: Vec<Vec<u8>>,
    /// Each shape is the ordered list of the names that a CALL or LINE frame shows.
    pub(crate) shapes: Vec<Box<[u32]>>,
    pub(crate) frames: Vec<FrameRow>,
    pub(crate) changes: Vec<Change>,
    /// The texts of the changes, one after the other, and of what is being rendered.
    pub(crate) values: Vec<u8>,
    name_ids: FxHashMap<Vec<u8>, u32>,
    shape_ids: FxHashMap<Box<[u32]>, u32>,
}

impl Trace {
    /// Line ids have 30 bits.
    pub(crate) const MAX_LINES: usize = 1 << FrameRow::LINE_BITS;
    /// Each frame may show a line of its own.
    pub(crate) const MAX_FRAMES: usize = Trace::MAX_LINES;
    /// Half of what 32 bits count, so that the frame that reaches it is whole.
    pub(crate) const MAX_CHANGES: usize = 1 << 31;

    pub fn new(context: String) -> Trace {
        Trace {
            context,
            ..Trace::default()
        }
    }

    /// Number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether the ids of frames, lines or changes come to their end: add no more frames then. By then a trace
    /// takes 12 GiB of memory or more.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.frames.len() >= Trace::MAX_FRAMES || self.changes.len() >= Trace::MAX_CHANGES
    }

    /// The frame at `index`, which must be less than [`Trace::len`].
    pub fn frame(&self, index: usize) -> FrameRef<'_> {
        assert!(index < self.len(), "frame {index} of a trace of {} frames", self.len());
        FrameRef { trace: self, index }
    }

    pub fn frames(&self) -> impl ExactSizeIterator<Item = FrameRef<'_>> {
        (0..self.len()).map(|index| FrameRef { trace: self, index })
    }

    /// The distinct source lines, by the id that [`FrameRef::line_id`] gives.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    pub fn name(&self, id: u32) -> &[u8] {
        &self.names[id as usize]
    }

    /// One more than the largest shape id.
    pub fn shape_count(&self) -> usize {
        self.shapes.len()
    }

    pub fn shape(&self, id: u32) -> &[u32] {
        &self.shapes[id as usize]
    }

    /// The text of change `id`.
    #[inline]
    pub fn value(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.changes[id - 1].end };
        &self.values[start as usize..self.changes[id].end as usize]
    }

    /// Where the text of change `id` begins in what [`Trace::open_value`] gives.
    #[inline]
    pub fn value_start(&self, id: u32) -> usize {
        id.checked_sub(1)
            .map_or(0, |before| self.changes[before as usize].end as usize)
    }

    #[inline]
    pub(crate) fn change_slot(&self, id: u32) -> u32 {
        self.changes[id as usize].slot
    }

    /// Bytes of memory that the frames take, without spare capacity: what `max_bytes` limits.
    #[inline]
    pub fn frame_bytes(&self) -> usize {
        size_of_val(&*self.frames) + size_of_val(&*self.changes) + self.values.len()
    }

    /// Adds a source line and gives its id. The caller keeps lines apart; equal lines may have several ids.
    ///
    /// Panics at the 2^30th: a trace that [`Trace::is_full`] takes no more.
    pub fn add_line(&mut self, line: Line) -> u32 {
        assert!(self.lines.len() < Trace::MAX_LINES, "too many source lines");
        self.lines.push(line);
        (self.lines.len() - 1) as u32
    }

    /// Gives every line its text, by its id and number: a recording knows the numbers first.
    pub fn set_line_texts(&mut self, mut text: impl FnMut(usize, u32) -> String) {
        for (id, line) in self.lines.iter_mut().enumerate() {
            line.text = text(id, line.number);
        }
    }

    /// The id of a variable's name.
    pub fn intern_name(&mut self, name: &[u8]) -> u32 {
        if let Some(&id) = self.name_ids.get(name) {
            return id;
        }
        let id = self.names.len() as u32;
        self.names.push(name.to_vec());
        self.name_ids.insert(name.to_vec(), id);
        id
    }

    /// The id of an ordered list of names.
    pub fn intern_shape(&mut self, names: &[u32]) -> u32 {
        if let Some(&id) = self.shape_ids.get(names) {
            return id;
        }
        let id = self.shapes.len() as u32;
        self.shapes.push(names.into());
        self.shape_ids.insert(names.into(), id);
        id
    }

    /// The end of the value log, to render a value into. Then keep it with [`Trace::keep_change`] or
    /// [`Trace::push_value_frame`], or drop it with [`Trace::drop_value`].
    #[inline]
    pub fn open_value(&mut self) -> &mut Vec<u8> {
        &mut self.values
    }

    /// The bytes rendered since the last kept value.
    #[inline]
    pub fn open_text(&self) -> &[u8] {
        &self.values[self.open_start()..]
    }

    #[inline]
    pub(crate) fn open_start(&self) -> usize {
        self.changes.last().map_or(0, |change| change.end as usize)
    }

    /// Keeps what was rendered as the value of the variable at `slot` of the next CALL or LINE frame, and gives the id
    /// of the change. Slots are kept in ascending order.
    #[inline]
    pub fn keep_change(&mut self, slot: u32) -> u32 {
        let id = self.changes.len() as u32;
        self.changes.push(Change {
            end: self.values.len() as u64,
            slot,
        });
        id
    }

    /// Rewinds what was rendered since the last kept value.
    #[inline]
    pub fn drop_value(&mut self) {
        let start = self.open_start();
        self.values.truncate(start);
    }

    /// Closes a CALL or LINE frame that shows the variables of `shape`, those kept as changes in full.
    ///
    /// Panics where changes are more than 32 bits count, which they are not in a trace that stopped when it
    /// [is full](Trace::is_full).
    #[inline]
    pub fn push_locals_frame(&mut self, event: Event, line: u32, shape: u32) {
        debug_assert!(event.has_locals());
        self.push_frame(event, line, shape);
    }

    /// Adds a RETURN or EXCEPTION frame whose value is what was rendered.
    ///
    /// Panics where changes are more than 32 bits count, which they are not in a trace that stopped when it
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

    /// Gives back the room that was kept for more frames.
    pub fn shrink_to_fit(&mut self) {
        self.frames.shrink_to_fit();
        self.changes.shrink_to_fit();
        self.values.shrink_to_fit();
    }

    /// How the program ended, as the frames of a whole trace show it: its one outermost activation returns in the last
    /// frame, or an EXCEPTION frame of that activation stands right before and unwinds it. `None` where there are
    /// several outermost activations (a generator that was resumed, say): the last one's value need not be the result.
    ///
    /// Frames that begin within an activation, as those of a prediction do, belong to one that was called before.
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

    /// Changes of whole frames: those kept after them belong to a frame that is not closed.
    pub(crate) fn closed_changes(&self) -> usize {
        self.frames.last().map_or(0, |frame| frame.changes_end as usize)
    }

    /// Forgets what was rendered and kept since the last whole frame.
    pub fn drop_open_frame(&mut self) {
        self.changes.truncate(self.closed_changes());
        self.drop_value();
    }
}

/// One frame of a trace.
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

    /// Index into [`Trace::lines`].
    pub fn line_id(self) -> u32 {
        self.row().line()
    }

    pub fn line(self) -> &'a Line {
        &self.trace.lines[self.line_id() as usize]
    }

    /// The interned set of names of a CALL or LINE frame.
    pub fn shape(self) -> Option<&'a [u32]> {
        let row = self.row();
        row.event().has_locals().then(|| self.trace.shape(row.shape))
    }

    /// The ids of the frame's changes, by ascending slot; of a RETURN or EXCEPTION frame its one value.
    pub fn changes(self) -> std::ops::Range<u32> {
        let start = match self.index.checked_sub(1) {
            Some(previous) => self.trace.frames[previous].changes_end,
            None => 0,
        };
        start..self.row().changes_end
    }

    /// The id of the set of names of a CALL or LINE frame.
    pub fn shape_id(self) -> u32 {
        self.row().shape
    }

    /// The value of a RETURN or EXCEPTION frame.
    pub fn arg(self) -> Option<&'a [u8]> {
        match self.event().has_locals() {
            true => None,
            false => Some(self.trace.value(self.changes().start)),
        }
    }

    /// The variables of a CALL or LINE frame in order, as written; nothing elsewhere.
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

/// Frames are equal when they show the same content, in the same order of variables.
impl PartialEq for FrameRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.event() == other.event()
            && self.line() == other.line()
            && self.arg() == other.arg()
            && self.locals().eq(other.locals())
    }
}

/// Traces are equal when they show the same, however they were built.
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

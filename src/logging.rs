//! Where log lines go: to the journal with their fields if standard error is the journal, else as text to standard error.
//!
//! In the journal every field of an event and of the spans around it becomes a field of the entry, in capitals:
//! `device_id` is `DEVICE_ID=`, so `journalctl DEVICE_ID=SENSOR-LINE7-PRESS-001` finds them. Entries are sent as
//! blocking datagrams, which is fine for some thousand a second; nothing here logs a line for each message.
//!
//! `MESSAGE=` says by itself what is wrong, as a text line does: the fields follow the text as `name=value`, because
//! `journalctl -u floorgate` shows nothing else. It is one line ([`MESSAGE_MAX`]) whatever devices, brokers and files say: a
//! value with anything but plain characters stands in quotes, a line's end in it as `\n`. The fields hold all of it.
//!
//! The same warning again is held back for a minute and counted (`logging/repeats.rs`).

mod repeats;

use std::fmt;
use std::io::Write;

use log::kv;
use systemd_journal_logger::{JournalLog, connected_to_journal};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

pub use repeats::{LINES_MAX, TOLD_EVERY};

/// What is logged unless told: `info`, and only warnings of the crates underneath.
pub const DEFAULT_FILTER: &str = "warn,floorgate=info";
/// Characters of a journal line, its fields included; what is cut off is in the entry's own fields.
pub const MESSAGE_MAX: usize = 1_024;
/// Characters of one field's value in it.
pub const VALUE_MAX: usize = 256;
/// The name under which the journal knows the lines.
const IDENTIFIER: &str = "floorgate";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter cannot be read.
    #[error(
        "log level {given:?} is none: {cause}; give error, warn, info, debug, trace, or a list such as {DEFAULT_FILTER:?}"
    )]
    Filter {
        /// As given.
        given: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Someone else did it before.
    #[error("logging is set up already")]
    Twice,
}

/// Sets up logging for the process, once.
///
/// `filter` is a level (`debug`) for floorgate itself, or a list of `target=level`.
///
/// # Errors
/// [`LoggingError`] for a filter that is none, and on a second call.
pub fn start(filter: Option<&str>) -> Result<(), LoggingError> {
    let filter = parse_filter(filter)?;
    let journal = if connected_to_journal() { JournalLog::empty().ok() } else { None };
    let journal = journal.map(|log| JournalLayer { log: log.with_syslog_identifier(IDENTIFIER.to_owned()).into() });
    let repeats = repeats::Repeats::new(match &journal {
        Some(journal) => {
            let journal = journal.clone();
            Box::new(move |text| journal.send(log::Level::Warn, "floorgate", (None, None, None), &Fields::text(text)))
        }
        // Nobody is left to tell if that fails.
        None => Box::new(|text| drop(writeln!(std::io::stderr(), "{:.3}  WARN {text}", jiff::Timestamp::now()))),
    });
    // systemd and containers show lines as they are; a terminal gets no colours either, so that pipes stay clean.
    let text = journal.is_none().then(|| {
        let time = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).with_timer(UtcTime);
        time.with_writer(std::io::stderr)
    });
    let subscriber = tracing_subscriber::registry().with(filter).with(repeats).with(journal).with(text);
    subscriber.try_init().map_err(|_| LoggingError::Twice)
}

fn parse_filter(given: Option<&str>) -> Result<EnvFilter, LoggingError> {
    let given = given.unwrap_or(DEFAULT_FILTER);
    let whole = if given.parse::<Level>().is_ok() { format!("warn,floorgate={given}") } else { given.to_owned() };
    let wrong = |cause: &dyn fmt::Display| LoggingError::Filter { given: given.to_owned(), cause: cause.to_string() };
    // A word that is no level would be taken for the name of a module, and silence everything.
    let bare = |part: &str| {
        part.is_empty() || !part.contains('=') && part.parse::<tracing::level_filters::LevelFilter>().is_err()
    };
    if let Some(part) = whole.split(',').find(|part| bare(part.trim())) {
        return Err(wrong(&format_args!("{part:?} is not a level")));
    }
    EnvFilter::try_new(&whole).map_err(|error| wrong(&error))
}

/// The time of a text line, as everywhere in floorgate.
struct UtcTime;

impl tracing_subscriber::fmt::time::FormatTime for UtcTime {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> fmt::Result {
        write!(w, "{:.3}", jiff::Timestamp::now())
    }
}

// ---- journal ----------------------------------------------------------------------------------------------------

/// Carries events to the journal with all their fields.
#[derive(Clone)]
struct JournalLayer {
    log: std::sync::Arc<JournalLog>,
}

/// Fields of an event or of a span.
#[derive(Debug, Default, Clone)]
struct Fields {
    message: String,
    pairs: Vec<(&'static str, String)>,
}

impl Fields {
    fn text(message: &str) -> Self {
        Self { message: message.to_owned(), pairs: Vec::new() }
    }
}

/// The line that people read: the text and all fields.
impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blank = |c: char| if c.is_control() { ' ' } else { c };
        let mut line: String = self.message.chars().map(blank).take(MESSAGE_MAX + 1).collect();
        for (name, value) in self.pairs.iter().filter(|(name, _)| is_own(name)) {
            line.push_str(&format!("{}{name}={}", if line.is_empty() { "" } else { " " }, shown(value)));
        }
        match line.char_indices().nth(MESSAGE_MAX) {
            None => f.write_str(&line),
            Some((end, _)) => write!(f, "{}…", line.get(..end).unwrap_or_default()),
        }
    }
}

/// A value as a line shows it: as it is if it is one word of plain characters, else in quotes.
fn shown(value: &str) -> String {
    let short: String = value.chars().take(VALUE_MAX).collect();
    let cut = if short.len() < value.len() { "…" } else { "" };
    let plain = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, '"' | '=' | '\\');
    if !short.is_empty() && short.chars().all(plain) { format!("{short}{cut}") } else { format!("{short:?}{cut}") }
}

/// `log.*` are the bridge's own notes on records of the log crate.
fn is_own(name: &str) -> bool {
    !name.starts_with("log.")
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.pairs.push((field.name(), value.to_owned()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

impl kv::Source for Fields {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn kv::VisitSource<'kvs>) -> Result<(), kv::Error> {
        for (name, value) in &self.pairs {
            if is_own(name) {
                visitor.visit_pair(kv::Key::from_str(name), kv::Value::from(value.as_str()))?;
            }
        }
        Ok(())
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for JournalLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &tracing::span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                // The innermost value of a name is the one that counts; the journal would keep them all.
                let known: Vec<_> = fields.pairs.iter().map(|(name, _)| *name).collect();
                let new = outer.pairs.iter().filter(|(name, _)| !known.contains(name)).cloned();
                fields.pairs.extend(new.collect::<Vec<_>>());
            }
        }
        let metadata = event.metadata();
        let target = fields.pairs.iter().find(|(name, _)| *name == "log.target").map(|(_, value)| value.clone());
        let target = target.as_deref().unwrap_or_else(|| metadata.target());
        let source = (metadata.module_path(), metadata.file(), metadata.line());
        self.send(level(*metadata.level()), target, source, &fields);
    }
}

impl JournalLayer {
    fn send(
        &self,
        level: log::Level,
        target: &str,
        source: (Option<&str>, Option<&str>, Option<u32>),
        fields: &Fields,
    ) {
        let mut record = log::Record::builder();
        record.level(level).target(target).module_path(source.0).file(source.1).line(source.2).key_values(fields);
        // A journal that does not listen must not stop a gateway.
        let _ = self.log.journal_send(&record.args(format_args!("{fields}")).build());
    }
}

fn level(level: Level) -> log::Level {
    match level {
        Level::ERROR => log::Level::Error,
        Level::WARN => log::Level::Warn,
        Level::INFO => log::Level::Info,
        Level::DEBUG => log::Level::Debug,
        Level::TRACE => log::Level::Trace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_level_means_floorgate_and_a_word_that_is_none_is_refused() {
        assert_eq!(parse_filter(Some("debug")).unwrap().to_string(), "floorgate=debug,warn");
        assert_eq!(parse_filter(Some("info,rumqttc=trace")).unwrap().to_string(), "rumqttc=trace,info");
        assert!(parse_filter(None).is_ok());
        for bad in ["loud", "", "info,loud", "floorgate=loud"] {
            assert!(matches!(parse_filter(Some(bad)), Err(LoggingError::Filter { .. })), "{bad:?}");
        }
    }

    /// Gathers what a journal entry would hold.
    #[derive(Clone, Default)]
    struct Gathered(Arc<Mutex<Vec<Fields>>>);

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Gathered {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut fields = Fields::default();
            event.record(&mut fields);
            self.0.lock().unwrap().push(fields);
        }
    }

    #[test]
    fn message_and_typed_fields_of_an_event_are_kept_apart() {
        let gathered = Gathered::default();
        let subscriber = tracing_subscriber::registry().with(gathered.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(device_id = "A-1", latency_ms = 7, reason = ?Some(1), "taken");
        });
        let fields = gathered.0.lock().unwrap().remove(0);
        assert_eq!(fields.message, "taken");
        let pairs: Vec<_> = fields.pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(pairs, [("device_id", "A-1"), ("latency_ms", "7"), ("reason", "Some(1)")]);
    }

    /// The lines that some events become.
    fn lines(events: impl FnOnce()) -> Vec<String> {
        let gathered = Gathered::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(gathered.clone()), events);
        let fields = gathered.0.lock().unwrap();
        fields.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_line_of_the_journal_says_what_is_wrong_by_itself() {
        let lines = lines(|| {
            let error = std::io::Error::other("connection refused");
            tracing::warn!(%error, table = "iot-devices", waiting = 3, "the table did not take it");
            tracing::info!(device_id = "A-1", status = "failed", reason = "NO_RESPONSE", "command ended");
            tracing::info!("nothing more");
        });
        assert_eq!(
            lines,
            [
                "the table did not take it error=\"connection refused\" table=iot-devices waiting=3",
                "command ended device_id=A-1 status=failed reason=NO_RESPONSE",
                "nothing more",
            ]
        );
    }

    #[test]
    fn nothing_that_others_say_makes_a_second_line_or_a_field() {
        let evil = "x\nNov 23 gw floorgate[1]: command ended device_id=\"B\"\u{1b}[31m\u{2028}";
        let lines = lines(|| tracing::warn!(cause = evil, "refused: {evil}"));
        assert!(!lines[0].chars().any(|c| c.is_control() || c == '\n'), "{lines:?}");
        let value = lines[0].split_once(" cause=").unwrap().1;
        assert!(value.starts_with("\"x\\nNov 23") && value.contains("device_id=\\\"B\\\""), "{value}");
    }

    #[test]
    fn a_line_is_cut_short_and_the_fields_are_not() {
        let long = "é".repeat(10_000);
        let gathered = Gathered::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(gathered.clone()), || {
            tracing::warn!(cause = long, a = long, b = long, c = long, d = long, e = long, "refused");
            tracing::warn!("{long}");
            tracing::warn!(cause = long, "refused");
        });
        let fields = gathered.0.lock().unwrap();
        for fields in fields.iter().take(2) {
            let line = fields.to_string();
            assert_eq!((line.chars().count(), line.chars().last()), (MESSAGE_MAX + 1, Some('…')));
        }
        assert_eq!(fields[2].to_string().chars().count(), "refused cause=…".chars().count() + VALUE_MAX);
        assert_eq!(fields[0].pairs[0].1, long);
    }
}

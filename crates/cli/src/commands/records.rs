//! `records check`: verifies the files of a server's record.

use std::time::Instant;

use indicatif::{HumanBytes, ProgressBar, ProgressFinish, ProgressStyle};
use serde::Serialize;
use twinlock_server::inspect::{self, CheckProgress, Finding, RecordCheck, RecordReport, Room};

use crate::args::RecordsCheckArgs;
use crate::blocking::blocking;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Style, harmless, json_path};
use crate::transfer_progress::shows_bars;

const BAR: &str = "checking the record {wide_bar} {bytes:>11} of {total_bytes:<11} {eta:>5}";
const MIB: u64 = 1024 * 1024;

/// The result in JSON.
#[derive(Debug, Serialize)]
struct RecordsJson<'a> {
    /// Whether everything verified.
    ok: bool,
    segments: u64,
    batches: u64,
    entries: u64,
    erased: u64,
    conversations: u64,
    accounts: u64,
    bytes: u64,
    seconds: f64,
    findings: Vec<FindingJson<'a>>,
    /// Number of other findings.
    more: u64,
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
struct FindingJson<'a> {
    file: String,
    offset: Option<u32>,
    conversation: Option<u64>,
    n: Option<u64>,
    problem: &'a str,
}

impl<'a> FindingJson<'a> {
    fn new(finding: &'a Finding) -> Self {
        let Finding { path, offset, conversation, n, problem } = finding;
        Self { file: json_path(path), offset: *offset, conversation: *conversation, n: *n, problem }
    }
}

pub(crate) async fn run(args: RecordsCheckArgs, context: &Context) -> Result<(), Failure> {
    let out = context.out;
    out.check()?;
    let (data, begun) = (args.data.clone(), Instant::now());
    let mut progress = progress_bar(out);
    let checked =
        blocking(move || inspect::whole_record(&data, &mut progress).map_err(Failure::usage));
    let report = match checked.await? {
        RecordCheck::Done(report) => report,
        RecordCheck::Missing => {
            let shown = args.data.display();
            return Err(Failure::usage(format!("{shown} has no record"))
                .hint("name the server's data directory, as of `serve --data`"));
        }
        RecordCheck::Old(room) => return Err(old_form(room)),
    };
    let seconds = begun.elapsed().as_secs_f64();
    if args.json {
        out.json(&json(&report, seconds))?;
    } else {
        show(&out, &report, seconds)?;
    }
    if report.is_sound() {
        return Ok(());
    }
    Err(Failure::new(Exit::Mismatch, "the record is damaged or was changed").hint(
        "keep a copy of the whole directory; then see docs/operating.md, \"Checking a record\"",
    ))
}

/// A record of version 0.1, which only a conversion checks.
fn old_form(Room { needed, available }: Room) -> Failure {
    let text = format!(
        "the record has the form of version 0.1, and was not checked: the next start checks and \
         converts it, which takes up to {} MiB; {} MiB are free",
        needed.div_ceil(MIB),
        available / MIB
    );
    Failure::usage(text).hint("start the server once, stop it, and repeat this")
}

fn json(report: &RecordReport, seconds: f64) -> RecordsJson<'_> {
    RecordsJson {
        ok: report.is_sound(),
        segments: report.segments,
        batches: report.batches,
        entries: report.entries,
        erased: report.erased,
        conversations: report.conversations,
        accounts: report.accounts,
        bytes: report.bytes,
        seconds,
        findings: report.findings.iter().map(FindingJson::new).collect(),
        more: report.more,
        notes: &report.notes,
    }
}

fn show(out: &Output, report: &RecordReport, seconds: f64) -> Result<(), Failure> {
    let counted = |count: u64, one: &str| match count {
        1 => format!("1 {one}"),
        count => format!("{count} {one}s"),
    };
    let verdict = match report.is_sound() {
        true => out.style(Style::Good, "ok"),
        false => out.style(Style::Bad, "DAMAGED"),
    };
    let entries = match report.entries {
        1 => "1 entry".to_owned(),
        count => format!("{count} entries"),
    };
    out.line(&format!(
        "{}, {}, {entries} ({} erased), {}, {}, {}, {seconds:.1} s: {verdict}",
        counted(report.segments, "segment"),
        counted(report.batches, "batch").replace("batchs", "batches"),
        report.erased,
        counted(report.conversations, "conversation"),
        counted(report.accounts, "account"),
        HumanBytes(report.bytes),
    ))?;
    for finding in &report.findings {
        let text = harmless(&finding.to_string());
        out.line(&format!("{} {}", out.style(Style::Bad, "✗"), out.wrap(&text, 2, 2)))?;
    }
    if report.more > 0 {
        out.line(&format!("  and {} more", report.more))?;
    }
    for note in &report.notes {
        let mark = out.style(Style::Warning, "!");
        out.line(&format!("{mark} {}", out.wrap(&harmless(note), 2, 2)))?;
    }
    Ok(())
}

/// Shows how far a check is, on a terminal.
fn progress_bar(out: Output) -> impl FnMut(CheckProgress) + Send + 'static {
    let shown = shows_bars(out.is_quiet());
    let mut bar: Option<ProgressBar> = None;
    move |CheckProgress { done, total }| {
        if !shown {
            return;
        }
        let bar = bar.get_or_insert_with(|| {
            // The template is constant and valid.
            let style =
                ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style).with_finish(ProgressFinish::AndClear)
        });
        bar.set_position(done);
    }
}

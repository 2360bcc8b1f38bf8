//! `bench`: measures a server's throughput, as a table or as JSON.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use twinlock_client::ClientError;
use twinlock_client::profile::Profile;
use twinlock_core::session::Binding;
use twinlock_loadgen::{
    LOGINS_AT_ONCE, Latency, Load, LoadError, LoadMode, Measurement, OpenFilesError, Plan, Shape,
    StopSignal, raise_open_files,
};

use crate::args::{BenchArgs, BenchMode};
use crate::connection_text::{binding_word, tls_verdict, warn_about_tls};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::Style;
use crate::signals::interrupted;

/// The default measurements. Idle connections come first, because a server does not return all
/// memory of earlier load.
const ALL: &[BenchMode] =
    &[BenchMode::Idle, BenchMode::Messages, BenchMode::Fanout, BenchMode::Logins, BenchMode::Files];
/// How long the last answers may take after a request to end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
const MIB: f64 = 1024.0 * 1024.0;

#[derive(Serialize)]
struct ReportJson<'a> {
    what: &'static str,
    room: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u32>,
    seconds: f64,
    /// Within `seconds`.
    count: u64,
    /// From the beginning to the last answer.
    total: u64,
    unit: &'static str,
    per_second: f64,
    latency_us: Option<LatencyJson>,
    server: Option<ServerJson>,
    client_cpu_us_each: Option<f64>,
    tls: TlsJson<'a>,
}

#[derive(Serialize)]
struct TlsJson<'a> {
    binding: &'static str,
    /// Who issued the certificate, as it says; null without TLS.
    issuer: Option<&'a str>,
    /// `tls`, `websocket` or `plain`.
    transport: String,
}

#[derive(Serialize)]
struct LatencyJson {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

#[derive(Serialize)]
struct ServerJson {
    cpu_us_each: f64,
    resident_before_bytes: u64,
    resident_bytes: u64,
    /// Per idle connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_line: Option<u64>,
}

pub(crate) async fn run(args: BenchArgs, mut context: Context) -> Result<(), Failure> {
    if let Some(profile) = &args.profile {
        context.global.profile = Some(profile.to_string());
    }
    let profile = context.profile()?;
    raise_open_files(u64::from(args.lines)).map_err(too_many)?;
    let (tell, told) = watch::channel(false);
    let timeout = context.global.timeout;
    let ending = tokio::spawn(async move {
        let late = async {
            match timeout {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let exit = tokio::select! {
            () = interrupted() => Exit::Interrupted,
            () = late => Exit::TimedOut,
        };
        tell.send_replace(true);
        exit
    });
    let plan = Plan {
        address: context.global.address.clone(),
        route: context.global.route(),
        users: args.users.unwrap_or(0) as usize,
        server: args.server_pid,
    };
    let measured = tokio::select! {
        measured = all(&profile, plan, StopSignal::new(told.clone()), &args, &context) => measured,
        // A second Ctrl-C does not wait for the last answers.
        () = twice() => return Err(Failure::interrupted()),
        // The server does not answer.
        () = overdue(told.clone()) => Err(Failure::said(Exit::Interrupted)),
    };
    let stopped = *told.borrow();
    match measured {
        Err(Failure { exit: Exit::Interrupted, .. }) | Ok(()) if stopped => {
            Err(Failure::said(ending.await.unwrap_or(Exit::Interrupted)))
        }
        measured => measured,
    }
}

/// Resolves `LAST_ANSWERS` after the request to end.
async fn overdue(mut told: watch::Receiver<bool>) {
    if told.wait_for(|told| *told).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(LAST_ANSWERS).await;
}

/// Runs the measurements one after the other and prints the result of each.
async fn all(
    profile: &Profile,
    plan: Plan,
    stop: StopSignal,
    args: &BenchArgs,
    context: &Context,
) -> Result<(), Failure> {
    let Context { out, .. } = context;
    let mut load = Load::start(profile, plan, stop.clone()).await.map_err(failed)?;
    warn_about_tls(out, load.binding(), load.issuer());
    out.say(&format!(
        "All entries go into the room {0} and stay there (`twinlock room join {0}`).",
        load.room()
    ));
    let modes = if args.mode.is_empty() { ALL } else { args.mode.as_slice() };
    let shape = Shape {
        connections: args.lines as usize,
        window: args.window as usize,
        size: args.size as usize,
        file: args.file,
        time: args.seconds,
    };
    if !args.json {
        if load.binding() != Binding::Bound {
            let verdict = tls_verdict(out, load.binding(), load.issuer());
            out.line(&format!("transport {}, TLS {verdict}", load.transport()))?;
        }
        out.line(&out.style(Style::Bold, &heading(args.server_pid.is_some())))?;
    }
    let mut ended = Ok(());
    for mode in modes {
        match load.run((*mode).into(), shape).await {
            Ok(reports) => {
                for report in reports {
                    if args.json {
                        out.json(&json(*mode, &report, &load, args))?;
                    } else {
                        out.line(&row(*mode, &report, args))?;
                    }
                }
            }
            Err(error) => ended = Err(failed(error)),
        }
        if ended.is_err() || stop.is_stopped() {
            break;
        }
    }
    let left = load.end(profile).await;
    ended?;
    left.map_err(failed)
}

async fn twice() {
    interrupted().await;
    interrupted().await;
}

fn too_many(error: OpenFilesError) -> Failure {
    let failure = Failure::usage(error.to_string());
    match error {
        OpenFilesError::HardLimit { .. } => {
            failure.hint("`ulimit -Hn`, or LimitNOFILE= of a service, is that limit")
        }
        OpenFilesError::Raise(_) => failure,
    }
}

/// Names the setting of the server that prevents the measurement, if one does.
fn failed(error: LoadError) -> Failure {
    let said = error.to_string();
    match error {
        LoadError::Client(error @ ClientError::Busy { .. }) => Failure::from(error).hint(
            "`unauthenticated-per-address` and `logins-per-minute` under [limits] of its \
             configuration are what one address may do",
        ),
        LoadError::Client(error) => error.into(),
        LoadError::Stopped => Failure::said(Exit::Interrupted),
        LoadError::TooManySessions => Failure::new(Exit::ServerSaidNo, said).hint(
            "`sessions-per-device` under [limits] of its configuration is that limit, and other \
             programs of yours count; --users N spreads the lines over N users, and wants a \
             profile that may invite",
        ),
        LoadError::Window { .. } | LoadError::Size { .. } => Failure::new(Exit::ServerSaidNo, said),
        LoadError::NoAnswer => Failure::new(Exit::NoConnection, said),
        LoadError::NoProcess(_) | LoadError::Histogram(_) => Failure::usage(said),
    }
}

impl From<BenchMode> for LoadMode {
    fn from(mode: BenchMode) -> Self {
        match mode {
            BenchMode::Messages => Self::Messages,
            BenchMode::Fanout => Self::Fanout,
            BenchMode::Idle => Self::Idle,
            BenchMode::Logins => Self::Logins,
            BenchMode::Files => Self::Files,
        }
    }
}

fn heading(server: bool) -> String {
    let used = if server { "  server" } else { "" };
    format!(
        "{:8} {:>6} {:>6} {:>6} {:>19} {:>9} {:>9} {:>9}{used}",
        "", "lines", "window", "bytes", "a second", "p50", "p99", "slowest"
    )
}

fn row(mode: BenchMode, report: &Measurement, args: &BenchArgs) -> String {
    let shape = Shaped::of(mode, args);
    let number = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let rate = match mode {
        BenchMode::Files => format!("{:.1} MB", report.rate() / 1e6),
        _ => format!("{:.0} {}", report.rate(), LoadMode::from(mode).unit()),
    };
    let time = |pick: fn(Latency) -> u64| match report.latency {
        Some(latency) => format!("{:.3} ms", pick(latency) as f64 / 1e3),
        None => "-".to_owned(),
    };
    let used = match (mode, report.server) {
        (_, None) => String::new(),
        (BenchMode::Idle, Some(_)) => {
            let bytes = report.bytes_each().unwrap_or(0);
            format!("  {:.1} KiB a line", bytes as f64 / 1024.0)
        }
        (BenchMode::Files, Some(server)) => {
            let gib = report.count as f64 / (1024.0 * MIB);
            format!("  {:.2} s CPU a GiB", server.cpu.as_secs_f64() / gib)
        }
        (_, Some(server)) => format!("  {:.2} us CPU each", report.micros_each(server.cpu)),
    };
    format!(
        "{:8} {:>6} {:>6} {:>6} {rate:>19} {:>9} {:>9} {:>9}{used}",
        report.what,
        number(shape.lines),
        number(shape.window),
        number(shape.size),
        time(|latency| latency.p50),
        time(|latency| latency.p99),
        time(|latency| latency.max),
    )
}

fn json<'a>(
    mode: BenchMode,
    report: &Measurement,
    load: &'a Load,
    args: &BenchArgs,
) -> ReportJson<'a> {
    let Shaped { lines, window, size } = Shaped::of(mode, args);
    ReportJson {
        what: report.what,
        room: load.room().as_str(),
        lines,
        window,
        size,
        seconds: report.seconds,
        count: report.count,
        total: report.total,
        unit: LoadMode::from(mode).unit(),
        per_second: report.rate(),
        latency_us: report.latency.map(|latency| LatencyJson {
            p50: latency.p50,
            p90: latency.p90,
            p99: latency.p99,
            p999: latency.p999,
            max: latency.max,
        }),
        server: report.server.map(|server| ServerJson {
            cpu_us_each: report.micros_each(server.cpu),
            resident_before_bytes: server.resident_before,
            resident_bytes: server.resident,
            bytes_per_line: report.bytes_each().filter(|_| mode == BenchMode::Idle),
        }),
        client_cpu_us_each: report.client_cpu.map(|cpu| report.micros_each(cpu)),
        tls: TlsJson {
            binding: binding_word(load.binding()),
            issuer: load.issuer(),
            transport: load.transport().to_string(),
        },
    }
}

/// The parts of the shape that a mode uses.
struct Shaped {
    lines: Option<u32>,
    window: Option<u32>,
    size: Option<u32>,
}

impl Shaped {
    fn of(mode: BenchMode, args: &BenchArgs) -> Self {
        let messages = matches!(mode, BenchMode::Messages | BenchMode::Fanout);
        let lines = match mode {
            BenchMode::Files => None,
            BenchMode::Logins => Some(args.lines.min(LOGINS_AT_ONCE)),
            _ => Some(args.lines),
        };
        Self { lines, window: messages.then_some(args.window), size: messages.then_some(args.size) }
    }
}

//! `twinlock`: server, terminal client and scripting tool in one binary.
//!
//! Commands return an [`exit::Failure`] or nothing; only this module exits the process.

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

mod args;
mod ask;
mod blocking;
mod clock;
mod commands;
mod connection_text;
mod context;
mod conversation;
mod enrolment;
mod entry;
mod exit;
mod input;
mod invite_text;
mod log_file;
mod logging;
mod lookup;
mod outbox_delivery;
mod output;
mod progress_timeout;
mod settings;
mod signals;
mod transfer_progress;
mod wrap;

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::RwLock;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::runtime::{Builder, Runtime};

use args::{Cli, CliCommand};
use commands::serve::ServeEnd;
use context::Context;
use exit::{Exit, Failure};
use output::Output;
use progress_timeout::after;
use signals::{interrupted, outlive_large_files};

/// Threads of a server besides the runtime's workers: five of the store, and blocking calls.
const SERVER_THREADS: usize = 7;
/// Threads of a client besides the runtime's workers, for blocking calls and standard input. A blocking
/// call waits for another one if there is no thread for it.
const CLIENT_THREADS: usize = 2;
/// Threads of a chat besides its worker: those of a client, the editor and its display.
const CHAT_THREADS: usize = 4;

fn main() -> ExitCode {
    let Cli { global, command } = args::parse();
    let out = Output::new(global.color, global.quiet);
    let ended = match command {
        // Certificates and entries cannot represent such times.
        _ if SystemTime::now() < UNIX_EPOCH => {
            Err(Failure::usage("the clock of this machine is before 1970").hint("set it right"))
        }
        CliCommand::Completions { shell } => commands::completions::run(shell, &out),
        CliCommand::Man { dir } => commands::man::run(&dir),
        CliCommand::Serve(serve) => {
            let out = out.optional();
            server_runtime().and_then(|runtime| {
                let ended = runtime.block_on(commands::serve::run(*serve, &out));
                let now = match &ended {
                    Ok(end) => *end == ServeEnd::Starting,
                    Err(failure) => failure.exit == Exit::Interrupted,
                };
                if now {
                    // Does not wait for the conversion of a record, or for jobs of the disk.
                    runtime.shutdown_background();
                }
                ended.map(drop)
            })
        }
        command => client_runtime(&command).and_then(|runtime| {
            let ended = runtime.block_on(interruptible(command, Context { global, out }));
            // Does not wait for a thread that is blocked on standard input.
            runtime.shutdown_background();
            ended
        }),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            out.failure(&failure);
            failure.code()
        }
    }
}

/// A runtime for a client command.
fn client_runtime(command: &CliCommand) -> Result<Runtime, Failure> {
    let (workers, others) = match command {
        CliCommand::Bench(bench) => (bench.threads.into(), CLIENT_THREADS),
        CliCommand::Chat(_) => (1, CHAT_THREADS),
        _ => (1, CLIENT_THREADS),
    };
    match workers {
        // The main thread is the worker.
        1 => runtime(Builder::new_current_thread(), others),
        _ => runtime(several(workers), workers + others),
    }
}

/// A runtime for a server, with a worker thread on each core.
fn server_runtime() -> Result<Runtime, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    runtime(several(cores), cores + SERVER_THREADS)
}

fn several(workers: usize) -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(workers);
    builder
}

/// Builds a runtime if `threads` threads can be started.
fn runtime(mut builder: Builder, threads: usize) -> Result<Runtime, Failure> {
    try_threads(threads)?;
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|error| Failure::usage(format!("the runtime cannot be started: {error}")))?;
    outlive_large_files(&runtime);
    Ok(runtime)
}

/// Starts and ends `count` threads. The runtime and the standard library panic if the system cannot
/// start one, at a process limit or without memory for a stack.
fn try_threads(count: usize) -> Result<(), Failure> {
    let gate = RwLock::new(());
    let started = std::thread::scope(|scope| {
        let _closed = gate.write();
        (0..count).try_for_each(|_| {
            let thread = std::thread::Builder::new();
            thread.spawn_scoped(scope, || drop(gate.read())).map(drop)
        })
    });
    started.map_err(|error| {
        Failure::usage(format!("{count} threads cannot be started: {error}")).hint(
            "raise the limit of processes (`ulimit -u`) or of memory (`ulimit -v`), or end other programs",
        )
    })
}

/// Runs a client command until it ends, is interrupted, or exceeds `--timeout`.
async fn interruptible(command: CliCommand, context: Context) -> Result<(), Failure> {
    let timeout = context.global.timeout;
    // These handle interrupts themselves and report what is not done.
    let own_end = matches!(
        command,
        CliCommand::Send(_)
            | CliCommand::Outbox(_)
            | CliCommand::Chat(_)
            | CliCommand::Put(_)
            | CliCommand::Get(_)
            | CliCommand::Bench(_)
    );
    // `listen` knows whether it is connected; `status` shows local data without a connection.
    let own_timeout = matches!(command, CliCommand::Listen(_) | CliCommand::Status(_));
    let timeout = timeout.filter(|_| !own_timeout);
    let run = commands::run(command, context);
    if own_end {
        return run.await;
    }
    tokio::select! {
        ended = run => ended,
        () = interrupted() => Err(Failure::interrupted()),
        () = after(timeout) => Err(Failure::new(Exit::TimedOut, "timed out")),
    }
}

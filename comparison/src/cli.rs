//! Parses the command line and runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Parser;

use crate::contestants::{self, Contestant};
use crate::measure::{self, Setting};
use crate::report::{self, Entry, Measured, Report, Shape, StressRow};
use crate::servers::{Server, Servers};
use crate::stress::{self, Stress};
use crate::work::Workload;
use crate::worker;

/// Measure the patterns of distributed locking beside keylane
///
/// Starts the servers that it needs from the installed binaries, on free ports of 127.0.0.1 and in
/// temporary folders, and RabbitMQ in Docker; all of them end with it. Prints tables and writes
/// JSON and a page with charts. Use a release build on a quiet machine.
#[derive(Debug, Parser)]
#[command(name = "comparison")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only the contestants on these servers (what runs on RabbitMQ alone always takes part)
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Server>,
    /// Only these contestants, by name
    #[arg(long, value_delimiter = ',')]
    contestants: Vec<String>,
    /// Only these workloads
    #[arg(long, value_enum, value_delimiter = ',')]
    workloads: Vec<Workload>,
    /// Tasks of a run, for each time that a handler takes: MS=TASKS
    #[arg(long, value_delimiter = ',', default_value = "0=1200,2=600", value_parser = times)]
    tasks: Vec<(u64, u32)>,
    /// Rounds of every measurement; medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Rounds of every stress; 0: none
    #[arg(long, default_value_t = 3)]
    stress_rounds: u32,
    /// Worker processes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..64))]
    workers: u32,
    /// Tasks that each worker has in hand
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..64))]
    slots: u32,
    /// Resources
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(2..100_000))]
    resources: u32,
    /// Where `comparison.json` and `comparison.html` go
    #[arg(long, default_value = "target/comparison")]
    out: PathBuf,
    /// A Markdown file whose marked tables are written anew, such as docs/comparison.md
    #[arg(long)]
    docs: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// A worker process, started by the program itself
    #[command(hide = true)]
    Worker,
    /// Makes the page and the tables of the documents from a report's JSON, without a run
    Render {
        /// `comparison.json` of a run
        json: PathBuf,
    },
}

fn times(text: &str) -> Result<(u64, u32), String> {
    let parts = text.split_once('=').ok_or("expected MS=TASKS")?;
    let handler_ms = parts.0.parse().map_err(|_| "no number of milliseconds")?;
    match parts.1.parse() {
        Ok(tasks @ 20..) => Ok((handler_ms, tasks)),
        Ok(_) | Err(_) => Err("at least 20 tasks, please".to_owned()),
    }
}

/// Runs the command line.
pub async fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.command {
        Some(Command::Worker) => worker::run().await,
        Some(Command::Render { json }) => render(&arguments, json),
        None => tokio::select! {
            outcome = compare(&arguments) => outcome,
            // Dropping the run ends the workers and the servers.
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("comparison: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn compare(arguments: &Arguments) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        eprintln!(
            "comparison: this is a debug build, its figures mean little: cargo run --release"
        );
    }
    let (chosen, mut left_out) = choose(arguments)?;
    let needed: BTreeSet<Server> =
        chosen.iter().flat_map(|one| one.about().needs.iter().copied()).collect();
    let missing: Vec<Server> = needed.iter().copied().filter(|one| !one.is_installed()).collect();
    for server in &missing {
        eprintln!("comparison: {} is not installed: {}", server.name(), server.install_line());
    }
    ensure!(
        missing.is_empty() || !arguments.only.is_empty(),
        "install what is missing, or choose what there is, for example --only {}",
        Server::ALL
            .iter()
            .filter(|one| one.is_installed())
            .map(|one| one.name())
            .collect::<Vec<_>>()
            .join(",")
    );
    let (chosen, lacking): (Vec<_>, Vec<_>) =
        chosen.into_iter().partition(|one| one.about().needs.iter().all(|s| !missing.contains(s)));
    left_out.extend(
        lacking.iter().map(|one| format!("{}: its server is not installed", one.about().name)),
    );

    let needed = needed.into_iter().filter(|one| !missing.contains(one)).collect();
    let servers = Servers::start(&needed, |line| eprintln!("comparison: {line}")).await?;
    let program = std::env::current_exe().context("cannot find the running program")?;
    let mut setting = Setting::new(&program, servers.endpoints.clone())?;
    setting.workers = arguments.workers;
    setting.slots = arguments.slots;
    setting.resources = arguments.resources;
    let tasks: BTreeMap<u64, u32> = arguments.tasks.iter().copied().collect();
    let (workers, slots) = (setting.workers, setting.slots);
    let (resources, lease_ms, rounds) = (setting.resources, setting.lease_ms, arguments.rounds);
    let report = Report {
        command: command_line(),
        machine: machine(),
        servers: servers.versions.clone(),
        measured: measure_all(arguments, &setting, &chosen, &tasks).await,
        stressed: stress_all(arguments, &setting, &chosen).await,
        shape: Shape { workers, slots, resources, lease_ms, rounds, tasks },
        left_out,
        contestants: chosen.iter().map(|one| Entry::new(one.about())).collect(),
    };
    servers.stop().await?;
    println!("{}", report::print(&report));
    write(arguments, &report)
}

type Contestants = Vec<Box<dyn Contestant>>;

/// The contestants that were asked for, and what that leaves out.
fn choose(arguments: &Arguments) -> anyhow::Result<(Contestants, Vec<String>)> {
    for name in &arguments.contestants {
        contestants::find(name)?;
    }
    let (mut chosen, mut left_out) = (Vec::new(), Vec::new());
    for contestant in contestants::all() {
        let about = contestant.about();
        let named = arguments.contestants.is_empty()
            || arguments.contestants.iter().any(|name| name == about.name);
        let served =
            arguments.only.is_empty() || about.needs.iter().all(|one| arguments.only.contains(one));
        if named && served {
            chosen.push(contestant);
        } else {
            let why = if named { "--only" } else { "--contestants" };
            left_out.push(format!("{}, by {why}", about.name));
        }
    }
    ensure!(!chosen.is_empty(), "nothing is left to be run");
    Ok((chosen, left_out))
}

async fn measure_all(
    arguments: &Arguments,
    setting: &Setting,
    chosen: &[Box<dyn Contestant>],
    tasks: &BTreeMap<u64, u32>,
) -> Vec<Measured> {
    let mut measured = Vec::new();
    for (handler_ms, tasks) in tasks {
        for workload in Workload::ALL {
            if !arguments.workloads.is_empty() && !arguments.workloads.contains(&workload) {
                continue;
            }
            let running: Vec<_> = chosen.iter().filter(|one| one.about().runs(workload)).collect();
            let mut outcomes: Vec<Vec<_>> = running.iter().map(|_| Vec::new()).collect();
            for round in 0..arguments.rounds as usize {
                // Another one begins in each round: what a run leaves behind, a warm disk or
                // a busy one, does not always meet the same successor.
                for turn in 0..running.len() {
                    let place =
                        (turn + round * running.len() / arguments.rounds as usize) % running.len();
                    let contestant = running[place].as_ref();
                    let name = contestant.about().name;
                    let count = workload.share(*tasks);
                    let outcome =
                        measure::run(setting, contestant, workload, *handler_ms, count).await;
                    let outcome = outcome.map_err(|error| format!("{error:#}"));
                    let shown = match &outcome {
                        Ok(one) => format!("{:.0} tasks/s", one.rate()),
                        Err(error) => error.clone(),
                    };
                    eprintln!(
                        "comparison: {handler_ms} ms, {}, round {}: {name}: {shown}",
                        workload.title(),
                        round + 1
                    );
                    outcomes[place].push(outcome);
                }
            }
            for (contestant, outcomes) in running.iter().zip(outcomes) {
                let name = contestant.about().name;
                measured.push(Measured::new(name, workload, *handler_ms, &outcomes));
            }
        }
    }
    measured
}

async fn stress_all(
    arguments: &Arguments,
    setting: &Setting,
    chosen: &[Box<dyn Contestant>],
) -> Vec<StressRow> {
    let mut stressed = Vec::new();
    if arguments.stress_rounds == 0 {
        return stressed;
    }
    for contestant in chosen {
        let name = contestant.about().name;
        for stress in Stress::ALL {
            if !stress.tries(contestant.as_ref()) {
                continue;
            }
            let mut rounds = Vec::new();
            for _ in 0..arguments.stress_rounds {
                let outcome = stress::run(setting, contestant.as_ref(), stress).await;
                rounds.push(outcome.map_err(|error| format!("{error:#}")));
            }
            let row = StressRow::new(name, stress, &rounds);
            eprintln!(
                "comparison: {stress:?}: {name}: moved after {:?} ms, {} lost {:?}",
                row.moved_ms, row.lost, row.failures
            );
            stressed.push(row);
        }
    }
    stressed
}

fn render(arguments: &Arguments, json: &Path) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(json).with_context(|| format!("cannot read {}", json.display()))?;
    let report: Report = serde_json::from_str(&text).context("not a report of ours")?;
    write(arguments, &report)
}

fn write(arguments: &Arguments, report: &Report) -> anyhow::Result<()> {
    let out = &arguments.out;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut files = vec![
        (out.join("comparison.json"), serde_json::to_string_pretty(report)? + "\n"),
        (out.join("comparison.html"), report::page(report)),
    ];
    if let Some(docs) = &arguments.docs {
        let old = std::fs::read_to_string(docs)
            .with_context(|| format!("cannot read {}", docs.display()))?;
        files.push((docs.clone(), report::refresh(&old, report)?));
    }
    for (path, text) in files {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("comparison: wrote {}", path.display());
    }
    Ok(())
}

/// How this program was called, as one would call it again; less where its files went.
fn command_line() -> String {
    let mut arguments = Vec::new();
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--out" | "--docs" => drop(given.next()),
            other if other.starts_with("--out=") || other.starts_with("--docs=") => {}
            _ => arguments.push(argument),
        }
    }
    let profile = if cfg!(debug_assertions) { "" } else { " --release" };
    let dashes = if arguments.is_empty() { "" } else { " -- " };
    format!("cargo run{profile} -p comparison{dashes}{}", arguments.join(" "))
}

/// Processors, memory and kernel.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kib =
        |line: &str| line.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse::<u64>().ok();
    let memory = read("/proc/meminfo").lines().find_map(kib).unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("?");
    format!(
        "{cores} virtual cores, {} GiB of memory, {} {kernel}; load average at the end {load}",
        (memory + (1 << 19)) >> 20,
        std::env::consts::OS,
    )
}

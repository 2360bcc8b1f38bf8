//! The steps of a diagnosis, and their results.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::Fault;

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It works.
    Ok,
    /// It works, or is not needed, but somebody should know.
    Warning,
    /// It does not work.
    Failed,
    /// A step before it failed, or it needs what is not known.
    NotTried,
}

/// A step of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its stable name.
    pub name: &'static str,
    /// Its result.
    pub outcome: Outcome,
    /// What happened, in one line without control characters.
    pub text: String,
    /// Details under stable names.
    pub facts: Map<String, Value>,
    /// What to do, if there is something to do.
    pub remedy: Option<String>,
    /// The side at fault if the step failed.
    #[serde(skip)]
    pub fault: Option<Fault>,
}

impl Step {
    /// A step that works.
    pub fn ok(name: &'static str, text: impl Into<String>) -> Self {
        let (text, facts) = (text.into(), Map::new());
        Self { name, outcome: Outcome::Ok, text, facts, remedy: None, fault: None }
    }

    /// A step that works, with something to know.
    pub fn warning(name: &'static str, text: impl Into<String>) -> Self {
        Self { outcome: Outcome::Warning, ..Self::ok(name, text) }
    }

    /// A step that does not work.
    pub fn failed(name: &'static str, fault: Fault, text: impl Into<String>) -> Self {
        Self { outcome: Outcome::Failed, fault: Some(fault), ..Self::ok(name, text) }
    }

    /// A step that was not tried.
    pub fn not_tried(name: &'static str, text: impl Into<String>) -> Self {
        Self { outcome: Outcome::NotTried, ..Self::ok(name, text) }
    }

    /// The same with a remedy.
    #[must_use]
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// The same with a fact.
    #[must_use]
    pub fn fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }
}

/// All steps of a connection, in their order.
#[derive(Debug, Clone)]
pub struct Diagnosis {
    /// The server's address.
    pub server: String,
    /// The steps.
    pub steps: Vec<Step>,
    /// The time in an HTTP answer, and when it arrived.
    pub(super) http_date: Option<(SystemTime, SystemTime)>,
}

/// The names of all steps.
const NAMES: [&str; 11] = [
    "name",
    "tcp",
    "proxy",
    "tls",
    "certificate",
    "alpn",
    "direct",
    "websocket",
    "challenge",
    "login",
    "clock",
];
/// The last step, which sums up the others.
const MIDDLE: &str = "middle";

impl Diagnosis {
    pub(super) fn new(server: String) -> Self {
        Self { server, steps: Vec::new(), http_date: None }
    }

    pub(super) fn add(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// The first step that failed, in the order of a connection.
    #[must_use]
    pub fn failed(&self) -> Option<&Step> {
        self.steps.iter().find(|step| step.outcome == Outcome::Failed)
    }

    /// Keeps the time of an HTTP answer that has just arrived.
    pub(super) fn note_date(&mut self, date: Option<SystemTime>) {
        self.http_date = self.http_date.or(date.map(|date| (date, SystemTime::now())));
    }

    /// Adds the steps that are missing, in their order.
    pub(super) fn complete(mut self) -> Self {
        let after = self.failed().map(|failed| failed.name);
        let place = |name| NAMES.iter().position(|known| *known == name);
        let why = |name| match after {
            Some(after) if place(after) < place(name) || name == MIDDLE => {
                format!("`{after}` failed")
            }
            _ => "does not apply".to_owned(),
        };
        let mut steps = Vec::new();
        for name in NAMES.into_iter().chain([MIDDLE]) {
            // Several addresses can have a step each.
            let (named, others) = self.steps.into_iter().partition::<Vec<_>, _>(|s| s.name == name);
            self.steps = others;
            if named.is_empty() {
                steps.push(Step::not_tried(name, why(name)));
            }
            steps.extend(named);
        }
        self.steps = steps;
        self
    }
}

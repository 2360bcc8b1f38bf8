//! `send`: queues messages in the outbox; exits with 0 once all are on the server's disk.

use crate::args::{SendArgs, TargetAndText};
use crate::context::Context;
use crate::exit::Failure;
use crate::input;
use crate::outbox_delivery::Delivery;
use crate::output::JsonEvents;

pub(crate) async fn run(mut send: SendArgs, context: &Context) -> Result<(), Failure> {
    let TargetAndText { target, text, escaped } = send.take_words()?;
    let report = send.json.then(|| JsonEvents::begin(context.out)).transpose()?;
    let mut delivery = Delivery::open(context, target.to_string(), report)?;
    let input = match text.filter(|text| escaped || text != "-") {
        Some(text) => {
            input::check_text(&text)?;
            delivery.enqueue(vec![text]).await?;
            None
        }
        None => Some(input::read_lines(&context.out)),
    };
    delivery.settle(input).await
}

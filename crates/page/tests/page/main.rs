//! The page over a controller that is faked at its RPCs, through the very routes that browsers use.

#![expect(clippy::unwrap_used, reason = "a test ends where it must not go on")]

mod browser;
mod fake;
mod forms;
mod hostile;
mod live;
mod operators;
mod pages;
mod sign_in;
mod unused;
mod world;

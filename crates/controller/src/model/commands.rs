//! What may be done in a play, and which of it a seed does.

use super::memory::Mishap;

/// Commands of a play.
const COMMANDS: usize = 60;

/// What is done next. Numbers name whatever there is, counted around, so that any command can be left out and the rest still makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A run of a job is asked for, under a new id.
    Submit {
        node: usize,
        job: usize,
        user: usize,
        once: Option<usize>,
    },
    /// The same request again, or with something else in it.
    Resubmit {
        node: usize,
        earlier: usize,
        other: bool,
    },
    /// An executor takes the next step with something that it has: it starts it, says that it runs, or how it ended.
    Step {
        robot: usize,
        held: usize,
        node: usize,
        outcome: usize,
    },
    /// It gives back something that it has not started.
    GiveBack {
        robot: usize,
        held: usize,
        node: usize,
    },
    /// Something that was said before is said again.
    Repeat {
        said: usize,
        node: usize,
    },
    Cancel {
        node: usize,
        run: usize,
    },
    /// An executor begins a session; it may have forgotten the newest of what it has, and may be another process.
    Connect {
        robot: usize,
        node: usize,
        forgets: usize,
        anew: bool,
    },
    HangUp {
        robot: usize,
    },
    Pass {
        seconds: u64,
    },
    /// A controller looks after what no event brings about.
    Turn {
        node: usize,
    },
    /// A job is paused, or all; or that ends.
    Pause {
        node: usize,
        job: Option<usize>,
        paused: bool,
    },
    /// An executor is given nothing more; or that ends.
    Drain {
        node: usize,
        robot: usize,
        drains: bool,
    },
    Lag {
        node: usize,
        mirror: usize,
    },
    CatchUp {
        node: usize,
    },
    Break {
        node: usize,
        mirror: usize,
    },
    Away {
        node: usize,
    },
    Back {
        node: usize,
    },
    Restart {
        node: usize,
    },
}

/// A command, and what goes wrong meanwhile with a controller's transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) what: What,
    pub(super) mishap: Option<(usize, usize, Mishap)>,
}

impl From<What> for Command {
    fn from(what: What) -> Self {
        Self { what, mishap: None }
    }
}

/// Numbers that look random: SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
}

/// The commands of a seed.
pub(super) fn commands(seed: u64) -> Vec<Command> {
    let mut dice = Dice(seed);
    let connected = (0..3).map(|robot| What::Connect { robot, node: dice.below(2), forgets: 0, anew: false }.into());
    let mut commands: Vec<Command> = connected.collect();
    for _ in 0..COMMANDS {
        let mishap = (dice.below(8) == 0).then(|| {
            let all = [Mishap::Unavailable, Mishap::LostBefore, Mishap::LostAfter, Mishap::LostAfter, Mishap::Overtaken];
            (dice.below(2), dice.below(3), all[dice.below(all.len())])
        });
        commands.push(Command { what: what(&mut dice), mishap });
    }
    commands
}

fn what(dice: &mut Dice) -> What {
    let (node, robot, any) = (dice.below(2), dice.below(3), dice.below(1000));
    match dice.below(100) {
        0..2 if any % 2 == 0 => {
            let job = (dice.below(5) > 0).then(|| dice.below(7));
            What::Pause { node, job, paused: dice.below(2) == 0 }
        }
        2..4 if any % 3 > 0 => What::Drain { node, robot, drains: dice.below(5) < 2 },
        0..16 => {
            let once = (dice.below(4) == 0).then(|| dice.below(3));
            What::Submit { node, job: [0, 1, 1, 2, 2, 3, 4, 4, 4, 5, 5, 6][dice.below(12)], user: dice.below(2), once }
        }
        16..20 => What::Resubmit { node, earlier: any, other: dice.below(2) == 0 },
        20..50 => What::Step { robot, held: any, node, outcome: dice.below(24) },
        50..52 => What::GiveBack { robot, held: any, node },
        52..60 => What::Repeat { said: any, node },
        60..64 => What::Cancel { node, run: any },
        64..71 => What::Connect { robot, node, forgets: dice.below(4).saturating_sub(2), anew: dice.below(3) == 0 },
        71..74 => What::HangUp { robot },
        74..82 => What::Pass { seconds: [1, 2, 5, 25, 40][dice.below(5)] },
        82..88 => What::Turn { node },
        88..91 => What::Lag { node, mirror: dice.below(6) },
        91..93 => What::CatchUp { node },
        93..95 => What::Break { node, mirror: dice.below(6) },
        95..97 => What::Away { node },
        97..99 => What::Back { node },
        _ => What::Restart { node },
    }
}

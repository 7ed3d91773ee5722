//! When a job runs by itself: the ticks of a schedule, before and after any moment. Pure: the moment comes in as a value, and the time zones are
//! those that are built in, so that all controllers of one version, and `octavius validate` on whatever machine, agree on every tick.
//!
//! The grammar of the five fields and the calendar are croner's; what clocks that are put forward and back do to a schedule is decided here,
//! as cron has done it for long. A schedule whose minute or hour begins with `*` goes by the clock on the wall: what lies in an hour that is
//! left out is left out, and what lies in an hour that comes twice happens twice. Every other one is meant to happen once, and does: in an
//! hour that is left out at the moment at which it would have begun, in an hour that comes twice the first time.

use std::sync::LazyLock;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};

use crate::definition::{CatchUp, Schedule};
use crate::nearest;

/// Who asks for what a schedule asks for. No token is made for a user whose name begins with [`RESERVED_USERS`].
pub const SCHEDULE_USER: &str = "octavius:schedule";

/// What the names of users begin with who are no people.
pub const RESERVED_USERS: &str = "octavius:";

/// The time zones that are built in.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// Why a schedule has no ticks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// There are not five fields.
    #[error("cron has five fields: minute, hour, day of month, month, day of week; here are {0}")]
    Fields(usize),
    /// It begins with `@`, and is none of the short forms.
    #[error("\"{}\" is not one of {}", .0.escape_debug(), short_forms())]
    ShortForm(String),
    /// A field cannot be understood.
    #[error("\"{}\" cannot be the {}", text.escape_debug(), field.name)]
    Field {
        /// The field as it is written.
        text: String,
        /// Which one.
        field: &'static Field,
    },
    /// No day fits.
    #[error("no day ever fits \"{}\"", .0.escape_debug())]
    Never(String),
    /// There is no such time zone.
    #[error("there is no time zone \"{}\"", name.escape_debug())]
    TimeZone {
        /// The zone as it is written.
        name: String,
        /// The zone that may be meant.
        nearest: Option<String>,
    },
}

/// One of the five fields.
#[derive(Debug, PartialEq, Eq)]
pub struct Field {
    /// What it is.
    pub name: &'static str,
    /// What may stand in it.
    pub values: &'static str,
    /// The words that may stand in it.
    words: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { name: "minute", values: "0-59", words: &[] },
    Field { name: "hour", values: "0-23", words: &[] },
    Field {
        name: "day of month",
        values: "1-31, L for the last, 15W for the weekday nearest to a day",
        words: &["L", "W", "LW"],
    },
    Field {
        name: "month",
        values: "1-12 or JAN-DEC",
        words: &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    },
    Field {
        name: "day of week",
        values: "0-7 or SUN-SAT (0 and 7 are Sunday), 5#2 for the second Friday of the month, 5L for its last",
        words: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "L", "SUNL", "MONL", "TUEL", "WEDL", "THUL", "FRIL", "SATL"],
    },
];

/// The short forms, and what they stand for.
const SHORT_FORMS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

fn short_forms() -> String {
    SHORT_FORMS.map(|(form, _)| form).join(", ")
}

/// Longest text of a schedule that is looked at: nobody's schedule is as long.
const LONGEST: usize = 1000;

/// Years in which a day is looked for that fits. 29 February is each day of the week once in them: what they do not have, no year has.
const SEARCHED_YEARS: &str = "2000-2027";

/// What is to be done about a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing before this tick; nothing ever where there is none.
    Wait(Option<Timestamp>),
    /// Run the job for this tick.
    Run(Timestamp),
    /// Ticks were missed, this one as the last: nothing makes them good.
    Missed(Timestamp),
}

/// The moments at which a schedule is due. It takes some KiB: keep the [`Schedule`], and make this when it is needed.
#[derive(Debug, Clone)]
pub struct Ticks {
    cron: Cron,
    /// Whether it goes by the clock on the wall.
    by_wall: bool,
    zone: TimeZone,
}

impl Ticks {
    /// The ticks of a schedule.
    ///
    /// # Errors
    /// Where the fields or the time zone cannot be understood, or no day ever fits.
    pub fn of(schedule: &Schedule) -> Result<Self, ScheduleError> {
        let fields = fields(&schedule.cron)?;
        let text = fields.join(" ");
        let by_wall = fields[..2].iter().any(|field| field.starts_with('*'));
        let cron = parser(Seconds::Disallowed, Year::Disallowed).parse(&text).map_err(|_| blame(&fields))?;
        // The same in a few years only, so that the search is short where it is in vain.
        let bounded = parser(Seconds::Required, Year::Required).parse(&format!("0 {text} {SEARCHED_YEARS}"));
        let fits = bounded.map_err(|_| blame(&fields))?.find_next_occurrence(&DateTime::constant(2000, 1, 1, 0, 0, 0, 0), true);
        if fits.is_err() {
            return Err(ScheduleError::Never(schedule.cron.clone()));
        }
        Ok(Self { cron, by_wall, zone: zone(schedule.time_zone.as_deref())? })
    }

    /// The time zone that it is meant in.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first tick after this moment; none where time ends before.
    #[must_use]
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        // Ticks are whole seconds, so that those after a moment are those after its second.
        let moment = Timestamp::from_second(moment.as_second() - i64::from(moment.subsec_nanosecond() < 0)).ok()?;
        if self.by_wall { self.next_by_wall(moment) } else { self.next_once(moment) }
    }

    /// The last tick at or before this moment; none where there is none.
    #[must_use]
    pub fn previous_at_or_before(&self, moment: Timestamp) -> Option<Timestamp> {
        let moment = Timestamp::from_second(moment.as_second() - i64::from(moment.subsec_nanosecond() < 0)).ok()?;
        if self.by_wall { self.previous_by_wall(moment) } else { self.previous_once(moment) }
    }

    /// What is to be done at `now`, where everything until `last` has been seen to. What is late by at most `grace` is on time, each tick of it, the
    /// oldest first; of what is later, `catch_up` makes good the newest, or nothing.
    #[must_use]
    pub fn due(&self, catch_up: CatchUp, last: Timestamp, now: Timestamp, grace: SignedDuration) -> Due {
        let second = SignedDuration::from_secs(1);
        let too_late = now.checked_sub(grace).and_then(|at| at.checked_sub(second)).unwrap_or(Timestamp::MIN);
        let next = self.next_after(last.max(too_late));
        if let Some(tick) = next.filter(|tick| *tick <= now) {
            return Due::Run(tick);
        }
        match self.previous_at_or_before(now).filter(|tick| *tick > last) {
            None => Due::Wait(next),
            Some(tick) => match catch_up {
                CatchUp::None => Due::Missed(tick),
                CatchUp::Latest => Due::Run(tick),
            },
        }
    }

    fn next_civil(&self, from: DateTime, inclusive: bool) -> Option<DateTime> {
        self.cron.find_next_occurrence(&from, inclusive).ok()
    }

    fn previous_civil(&self, from: DateTime) -> Option<DateTime> {
        self.cron.find_previous_occurrence(&from, true).ok()
    }

    /// The moment at which the zone's clocks were last put forward or back, at or before this one.
    fn last_change(&self, moment: Timestamp) -> Option<Timestamp> {
        let after = moment.checked_add(SignedDuration::from_secs(1)).ok()?;
        self.zone.preceding(after).next().map(|change| change.timestamp())
    }

    /// When a time on the wall is, for what happens once: in an hour that is left out at its begin, in one that comes twice the first time.
    /// Later times on the wall are never earlier moments.
    fn once(&self, civil: DateTime) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(civil);
        match ambiguous.offset() {
            AmbiguousOffset::Gap { .. } => self.last_change(ambiguous.later().ok()?),
            AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => ambiguous.earlier().ok(),
        }
    }

    fn next_once(&self, moment: Timestamp) -> Option<Timestamp> {
        let mut civil = self.zone.to_datetime(moment);
        loop {
            civil = self.next_civil(civil, false)?;
            // In an hour that comes for the second time, what follows on the wall has been.
            match self.once(civil)? {
                tick if tick > moment => return Some(tick),
                _ => {}
            }
        }
    }

    fn previous_once(&self, moment: Timestamp) -> Option<Timestamp> {
        let mut civil = self.zone.to_datetime(moment);
        let ambiguous = self.zone.to_ambiguous_timestamp(civil);
        if matches!(ambiguous.offset(), AmbiguousOffset::Fold { .. }) && ambiguous.earlier().ok()? < moment {
            // The hour comes for the second time: all of it has been.
            let last = self.last_change(moment)?.checked_sub(SignedDuration::from_secs(1)).ok()?;
            civil = self.zone.to_datetime(last);
        }
        self.once(self.previous_civil(civil)?)
    }

    fn next_by_wall(&self, mut moment: Timestamp) -> Option<Timestamp> {
        // From one change of the clocks to the next, wall and time go side by side.
        let mut inclusive = false;
        loop {
            let offset = self.zone.to_offset(moment);
            let tick = offset.to_timestamp(self.next_civil(offset.to_datetime(moment), inclusive)?).ok()?;
            match self.zone.following(moment).next().map(|change| change.timestamp()) {
                Some(change) if change <= tick => (moment, inclusive) = (change, true),
                _ => return Some(tick),
            }
        }
    }

    fn previous_by_wall(&self, mut moment: Timestamp) -> Option<Timestamp> {
        loop {
            let offset = self.zone.to_offset(moment);
            let tick = offset.to_timestamp(self.previous_civil(offset.to_datetime(moment))?).ok()?;
            match self.last_change(moment) {
                Some(change) if tick < change => moment = change.checked_sub(SignedDuration::from_secs(1)).ok()?,
                _ => return Some(tick),
            }
        }
    }
}

fn parser(seconds: Seconds, year: Year) -> CronParser {
    CronParser::builder().seconds(seconds).year(year).build()
}

/// The five fields of a schedule, as far as they hold nothing but what may stand in them.
fn fields(text: &str) -> Result<Vec<&str>, ScheduleError> {
    let mut text = text.trim();
    if text.starts_with('@') {
        let known = SHORT_FORMS.iter().find(|(form, _)| text.eq_ignore_ascii_case(form));
        text = known.ok_or_else(|| ScheduleError::ShortForm(text.to_owned()))?.1;
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(ScheduleError::Fields(fields.len()));
    }
    for (text, field) in fields.iter().zip(&FIELDS) {
        // More than croner asks: to it, MON is 1 wherever it stands.
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '*' | ',' | '-' | '/' | '#');
        let words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty());
        let mut unknown = words.filter(|word| !field.words.iter().any(|known| known.eq_ignore_ascii_case(word)));
        if text.len() > LONGEST || !text.chars().all(known) || unknown.next().is_some() {
            return Err(ScheduleError::Field { text: (*text).to_owned(), field });
        }
    }
    Ok(fields)
}

/// Which of five fields cannot be understood: the first that is not understood alone.
fn blame(fields: &[&str]) -> ScheduleError {
    let alone = |index: usize| {
        (0..fields.len()).map(|other| if other == index { fields[other] } else { "*" }).collect::<Vec<_>>().join(" ")
    };
    let parser = parser(Seconds::Disallowed, Year::Disallowed);
    let bad = (0..fields.len()).find(|index| parser.parse(&alone(*index)).is_err()).unwrap_or_default();
    ScheduleError::Field { text: fields[bad].to_owned(), field: &FIELDS[bad] }
}

fn zone(name: Option<&str>) -> Result<TimeZone, ScheduleError> {
    let Some(name) = name else { return Ok(TimeZone::UTC) };
    let unknown = || {
        let names: Vec<String> = ZONES.available().map(|name| name.to_string()).collect();
        // Whoever writes the city alone means its zone.
        let city = |zone: &&String| zone.rsplit('/').next().is_some_and(|city| city.eq_ignore_ascii_case(name));
        let nearest =
            names.iter().find(city).map(String::as_str).or_else(|| nearest::nearest(name, names.iter().map(String::as_str)));
        ScheduleError::TimeZone { name: name.to_owned(), nearest: nearest.map(str::to_owned) }
    };
    ZONES.get(name).ok().filter(|zone| !zone.is_unknown()).ok_or_else(unknown)
}

#[cfg(test)]
mod tests;

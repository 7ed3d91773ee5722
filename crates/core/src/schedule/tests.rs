//! Held against an oracle that walks minute by minute and looks at the clock on the wall.

use std::collections::BTreeSet;

use jiff::civil::Date;
use proptest::prelude::*;

use super::*;

fn schedule(cron: &str, zone: Option<&str>) -> Schedule {
    serde_json::from_value(serde_json::json!({ "cron": cron, "time_zone": zone })).unwrap()
}

fn ticks(cron: &str, zone: &str) -> Ticks {
    Ticks::of(&schedule(cron, Some(zone))).unwrap_or_else(|error| panic!("{cron} in {zone}: {error}"))
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The next ticks, by the clock on the wall.
fn wall(ticks: &Ticks, after: &str, count: usize) -> Vec<String> {
    let moments = std::iter::successors(Some(at(after)), |tick| ticks.next_after(*tick));
    moments.skip(1).take(count).map(|tick| tick.to_zoned(ticks.zone().clone()).strftime("%d %H:%M %z").to_string()).collect()
}

#[test]
fn the_usual_schedules() {
    assert_eq!(
        wall(&ticks("0 3 * * *", "Asia/Jakarta"), "2026-11-28T20:00:00Z", 2),
        ["30 03:00 +0700", "01 03:00 +0700"],
        "a tick is not after itself"
    );
    assert_eq!(wall(&ticks("*/20 8-9 * * mon-fri", "UTC"), "2026-11-27T09:30:00Z", 2), ["27 09:40 +0000", "30 08:00 +0000"]);
    // Where both days are given, either will do.
    assert_eq!(
        wall(&ticks("0 0 1 * FRI", "UTC"), "2026-11-26T00:00:00Z", 3),
        ["27 00:00 +0000", "01 00:00 +0000", "04 00:00 +0000"]
    );
    assert_eq!(wall(&ticks("0 0 L * *", "UTC"), "2026-11-29T00:00:00Z", 2), ["30 00:00 +0000", "31 00:00 +0000"]);
    assert_eq!(wall(&ticks("0 0 29 2 *", "UTC"), "2096-03-01T00:00:00Z", 1), ["29 00:00 +0000"], "eight years on");
    assert_eq!(wall(&ticks("0 0 * 2 MON#5", "UTC"), "2026-11-29T00:00:00Z", 1), ["29 00:00 +0000"], "in 2044");
    assert_eq!(wall(&ticks("@weekly", "UTC"), "2026-11-29T00:00:00Z", 1), ["06 00:00 +0000"]);
    let hourly = Ticks::of(&schedule("@Hourly", None)).unwrap();
    assert_eq!(hourly.next_after(at("2026-11-29T00:59:59.999Z")), Some(at("2026-11-29T01:00:00Z")));
    assert_eq!(hourly.previous_at_or_before(at("2026-11-29T01:00:00Z")), Some(at("2026-11-29T01:00:00Z")));
    assert_eq!(hourly.previous_at_or_before(at("2026-11-29T00:59:59.999Z")), Some(at("2026-11-29T00:00:00Z")));
    assert_eq!(hourly.next_after(Timestamp::MAX), None);
    assert_eq!(hourly.next_after(at("1969-12-31T23:00:00.5Z")), Some(at("1970-01-01T00:00:00Z")));
    assert_eq!(hourly.next_after(at("1969-12-31T22:59:59.5Z")), Some(at("1969-12-31T23:00:00Z")));
}

/// Berlin put its clocks from 2:00 to 3:00 on 29 March 2026, and back from 3:00 to 2:00 on 25 October.
#[test]
fn what_is_to_happen_once_happens_once_when_clocks_change() {
    let berlin = |cron: &str| ticks(cron, "Europe/Berlin");
    let (spring, autumn) = ("2026-03-28T23:00:00Z", "2026-10-24T22:00:00Z");
    assert_eq!(wall(&berlin("30 2 * * *"), spring, 2), ["29 03:00 +0200", "30 02:30 +0200"]);
    assert_eq!(wall(&berlin("0,30 2,3 * * *"), spring, 3), ["29 03:00 +0200", "29 03:30 +0200", "30 02:00 +0200"]);
    assert_eq!(wall(&berlin("30 2 * * *"), autumn, 2), ["25 02:30 +0200", "26 02:30 +0100"]);
    assert_eq!(wall(&berlin("0 2,3 * * *"), autumn, 3), ["25 02:00 +0200", "25 03:00 +0100", "26 02:00 +0100"]);
    // By the clock on the wall.
    assert_eq!(wall(&berlin("30 * * * *"), spring, 3), ["29 00:30 +0100", "29 01:30 +0100", "29 03:30 +0200"]);
    assert_eq!(wall(&berlin("*/30 2 * * *"), spring, 1), ["30 02:00 +0200"]);
    assert_eq!(wall(&berlin("30 * * * *"), autumn, 4), ["25 00:30 +0200", "25 01:30 +0200", "25 02:30 +0200", "25 02:30 +0100"]);
    let nightly = berlin("30 2 * * *");
    assert_eq!(nightly.previous_at_or_before(at("2026-03-29T01:00:00Z")), Some(at("2026-03-29T01:00:00Z")));
    assert_eq!(nightly.previous_at_or_before(at("2026-10-25T01:15:00Z")), Some(at("2026-10-25T00:30:00Z")));
}

#[test]
fn what_is_no_schedule_is_told_with_its_field() {
    let told = |cron: &str| Ticks::of(&schedule(cron, None)).unwrap_err().to_string();
    assert_eq!(told("* * * *"), "cron has five fields: minute, hour, day of month, month, day of week; here are 4");
    assert_eq!(told("0 0 * * * *"), "cron has five fields: minute, hour, day of month, month, day of week; here are 6");
    assert_eq!(told(""), "cron has five fields: minute, hour, day of month, month, day of week; here are 0");
    assert_eq!(told("@reboot"), "\"@reboot\" is not one of @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly");
    for (cron, expected) in [
        ("61 * * * *", "\"61\" cannot be the minute"),
        ("0 24 * * *", "\"24\" cannot be the hour"),
        ("0 0 0 * *", "\"0\" cannot be the day of month"),
        ("0 0 * MON *", "\"MON\" cannot be the month"),
        ("0 0 * * MONDAY", "\"MONDAY\" cannot be the day of week"),
        ("0 0 * * 8", "\"8\" cannot be the day of week"),
        ("5-1 * * * *", "\"5-1\" cannot be the minute"),
        ("*/0 * * * *", "\"*/0\" cannot be the minute"),
        ("MON * * * *", "\"MON\" cannot be the minute"),
        ("0 0 ? * *", "\"?\" cannot be the day of month"),
        ("0 0 * * +1", "\"+1\" cannot be the day of week"),
        ("0 0 * * é", "\"é\" cannot be the day of week"),
        ("0 0 30 2 *", "no day ever fits \"0 0 30 2 *\""),
        ("0 0 31 4,6,9,11 *", "no day ever fits \"0 0 31 4,6,9,11 *\""),
    ] {
        assert_eq!(told(cron), expected, "{cron}");
    }
    let zone = |name: &str| match Ticks::of(&schedule("* * * * *", Some(name))).unwrap_err() {
        ScheduleError::TimeZone { nearest, .. } => nearest,
        other => panic!("{other}"),
    };
    assert_eq!(zone("Asia/Jakrta").as_deref(), Some("Asia/Jakarta"));
    assert_eq!(zone("jakarta").as_deref(), Some("Asia/Jakarta"));
    assert_eq!((zone("Mars/Olympus"), zone(""), zone("Etc/Unknown")), (None, None, None));
    assert_eq!(Ticks::of(&schedule("* * * * *", Some("asia/jakarta"))).unwrap().zone().iana_name(), Some("Asia/Jakarta"));
}

#[test]
fn what_is_late_is_on_time_for_a_while_and_then_missed() {
    let hourly = ticks("0 * * * *", "UTC");
    let day = |time: &str| at(&format!("2026-11-29T{time}Z"));
    let due = |catch_up, last: &str, now: &str| hourly.due(catch_up, day(last), day(now), SignedDuration::from_secs(60));
    for catch_up in [CatchUp::None, CatchUp::Latest] {
        assert_eq!(due(catch_up, "03:00:00", "03:59:59"), Due::Wait(Some(day("04:00:00"))));
        assert_eq!(due(catch_up, "03:00:00", "04:00:00"), Due::Run(day("04:00:00")));
        assert_eq!(due(catch_up, "03:00:00", "04:01:00.5"), Due::Run(day("04:00:00")));
        assert_eq!(due(catch_up, "03:30:00", "07:00:30"), Due::Run(day("07:00:00")), "the older ones stay missed");
        assert_eq!(due(catch_up, "05:00:00", "04:00:10"), Due::Wait(Some(day("06:00:00"))), "a clock that was ahead ran it");
    }
    assert_eq!(due(CatchUp::None, "03:00:00", "06:02:00"), Due::Missed(day("06:00:00")));
    assert_eq!(due(CatchUp::Latest, "03:00:00", "06:02:00"), Due::Run(day("06:00:00")));
    assert_eq!(due(CatchUp::Latest, "06:00:00", "06:02:00"), Due::Wait(Some(day("07:00:00"))));
    // Each of those that are on time runs.
    let often = ticks("* * * * *", "UTC");
    let last = day("03:00:00");
    assert_eq!(often.due(CatchUp::None, last, day("03:02:00"), SignedDuration::from_secs(60)), Due::Run(day("03:01:00")));
}

/// Whatever stands in a file is understood or refused, and soon.
#[test]
fn a_flood_is_refused() {
    let flood = format!("{} * * * *", "1,".repeat(100_000));
    assert!(matches!(Ticks::of(&schedule(&flood, None)), Err(ScheduleError::Field { .. })));
    assert!(Ticks::of(&schedule(&"* ".repeat(100_000), None)).is_err());
}

/// A field as it is written, and the numbers that it means.
fn field(min: u32, max: u32) -> impl Strategy<Value = (String, BTreeSet<u32>)> {
    let all = move || (min..=max).collect::<BTreeSet<_>>();
    prop_oneof![
        3 => Just(("*".to_owned(), all())),
        2 => (2..=max.max(3) / 2).prop_map(move |step| (format!("*/{step}"), (min..=max).step_by(step as usize).collect())),
        3 => proptest::collection::btree_set(min..=max, 1..4).prop_map(|set| {
            (set.iter().map(ToString::to_string).collect::<Vec<_>>().join(","), set)
        }),
        1 => (min..=max, min..=max).prop_map(|(a, b)| {
            let (low, high) = (a.min(b), a.max(b));
            (format!("{low}-{high}"), (low..=high).collect())
        }),
    ]
}

#[derive(Debug, Clone)]
struct Oracle {
    text: String,
    sets: [BTreeSet<u32>; 5],
    any_day: bool,
    any_weekday: bool,
    by_wall: bool,
}

impl Oracle {
    fn fits(&self, civil: DateTime) -> bool {
        let [minutes, hours, days, months, weekdays] = &self.sets;
        let has = |set: &BTreeSet<u32>, value: i8| set.contains(&u32::try_from(value).unwrap());
        let day = has(days, civil.day());
        let weekday = has(weekdays, civil.weekday().to_sunday_zero_offset());
        let date = if self.any_day || self.any_weekday { day && weekday } else { day || weekday };
        has(minutes, civil.minute()) && has(hours, civil.hour()) && has(months, civil.month()) && date
    }

    /// The ticks in so many minutes from a moment on, one by one.
    fn walk(&self, zone: &TimeZone, from: Timestamp, minutes: i64) -> Vec<Timestamp> {
        let minute = SignedDuration::from_mins(1);
        let moment = |index: i64| from.checked_add(minute * i32::try_from(index).unwrap()).unwrap();
        // What was on the wall before counts too: it comes for the second time.
        let before = 30 * 60;
        let mut seen = BTreeSet::new();
        let mut last: Option<DateTime> = None;
        let mut found = Vec::new();
        for index in -before..=minutes {
            let civil = zone.to_datetime(moment(index));
            let first = seen.insert(civil);
            let fits = if self.by_wall {
                self.fits(civil)
            } else {
                let mut left_out = last.map(|last| last.checked_add(minute).unwrap()).unwrap_or(civil);
                let mut fits = first && self.fits(civil);
                while left_out < civil {
                    fits |= self.fits(left_out) && seen.insert(left_out);
                    left_out = left_out.checked_add(minute).unwrap();
                }
                fits
            };
            last = Some(civil);
            if fits && index >= 0 {
                found.push(moment(index));
            }
        }
        found
    }
}

fn oracle() -> impl Strategy<Value = Oracle> {
    // Mostly of every month, or the days that are walked would hold few ticks.
    let months = prop_oneof![3 => Just(("*".to_owned(), (1..=12).collect())), 1 => field(1, 12)];
    (field(0, 59), field(0, 23), field(1, 31), months, field(0, 6)).prop_map(|fields| {
        let fields = [fields.0, fields.1, fields.2, fields.3, fields.4];
        let text = fields.clone().map(|(text, _)| text);
        Oracle {
            any_day: text[2] == "*",
            any_weekday: text[4] == "*",
            by_wall: text[0].starts_with('*') || text[1].starts_with('*'),
            text: text.join(" "),
            sets: fields.map(|(_, set)| set),
        }
    })
}

/// A zone, and the beginning of two days that are likely to hold a change of its clocks. Offsets of zones were whole minutes by 1980.
fn days() -> impl Strategy<Value = (String, Timestamp)> {
    let zones: Vec<String> = ZONES.available().map(|name| name.to_string()).collect();
    (proptest::sample::select(zones), 1980..2060i16, 0..366i64, -2000..200i64).prop_map(|(name, year, day, minutes)| {
        let zone = ZONES.get(&name).unwrap();
        let date = Date::new(year, 1, 1).unwrap().checked_add(SignedDuration::from_hours(24 * day)).unwrap();
        let near = date.at(0, 0, 0, 0).to_zoned(TimeZone::UTC).unwrap().timestamp();
        let change = zone.following(near).next().map_or(near, |change| change.timestamp());
        (name, change.checked_add(SignedDuration::from_mins(minutes)).unwrap())
    })
}

const WALKED: i64 = 3 * 24 * 60;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn ticks_are_those_that_a_walk_by_the_minute_finds((name, from) in days(), oracle in oracle(), seconds in 0..60i64) {
        let zone = ZONES.get(&name).unwrap();
        let found = oracle.walk(&zone, from, WALKED);
        let until = from.checked_add(SignedDuration::from_mins(WALKED)).unwrap();
        match Ticks::of(&schedule(&oracle.text, Some(&name))) {
            Err(ScheduleError::Never(_)) => prop_assert_eq!(found, vec![]),
            Err(error) => prop_assert!(false, "{} in {}: {}", oracle.text, name, error),
            Ok(ticks) => {
                let just_before = from.checked_sub(SignedDuration::from_secs(1)).unwrap();
                let told = std::iter::successors(ticks.next_after(just_before), |tick| ticks.next_after(*tick));
                let told: Vec<_> = told.take_while(|tick| *tick <= until).collect();
                prop_assert_eq!(&told, &found, "after, {} in {} from {}", &oracle.text, &name, from);
                // And backwards, from between any two.
                for pair in found.windows(2).take(200) {
                    let between = pair[0].checked_add(SignedDuration::from_secs(seconds)).unwrap();
                    if between < pair[1] {
                        prop_assert_eq!(ticks.previous_at_or_before(between), Some(pair[0]), "before {}, {} in {}", between, &oracle.text, &name);
                    }
                    let late = pair[1].checked_sub(SignedDuration::from_nanos(1)).unwrap();
                    prop_assert_eq!(ticks.previous_at_or_before(late), Some(pair[0]), "before {}, {} in {}", late, &oracle.text, &name);
                }
                if let Some(first) = found.first() {
                    let earlier = ticks.previous_at_or_before(first.checked_sub(SignedDuration::from_secs(1)).unwrap());
                    prop_assert!(earlier.is_none_or(|earlier| earlier < from), "{:?} before {}", earlier, from);
                }
            }
        }
    }
}

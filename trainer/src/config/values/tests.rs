use super::*;
use crate::config::Resume;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn intervals_are_durations_or_steps() {
    for (text, time) in [
        ("30s", MINUTE / 2),
        ("30min", 30 * MINUTE),
        ("30m", 30 * MINUTE),
        ("500ms", MINUTE / 120),
        ("2h", 120 * MINUTE),
        ("1h 30min", 90 * MINUTE),
        ("1h30m", 90 * MINUTE),
        ("1day 2hours", 26 * 60 * MINUTE),
        ("30d", 30 * 24 * 60 * MINUTE),
    ] {
        assert_eq!(text.parse(), Ok(Every::Time(time)), "{text}");
    }
    for (text, steps) in
        [("100 steps", 100), ("100steps", 100), ("100", 100), ("1 step", 1), ("18446744073709551615 steps", u64::MAX)]
    {
        assert_eq!(text.parse(), Ok(Every::Steps(steps)), "{text}");
    }
}

#[test]
fn other_intervals_are_refused_with_the_accepted_forms() {
    for (text, part) in [
        ("30M", "the unit \"M\""),
        ("1y", "the unit \"y\""),
        ("2w", "the unit \"w\""),
        ("2weeks", "the unit \"weeks\""),
        ("1month", "the unit \"month\""),
        ("1H", "the unit \"H\""),
        ("10us", "the unit \"us\""),
        ("10epochs", "the unit \"epochs\""),
        ("0", "never"),
        ("1h30", "not directly followed by a unit"),
        ("1 h", "not directly followed by a unit"),
        ("1.5h", "not directly followed by a unit"),
        ("1_000s", "not directly followed by a unit"),
        ("-5s", "is not a duration"),
        ("+5s", "is not a duration"),
        ("5s,", "is not a duration"),
        ("5s ", "is not a duration"),
        ("5s  6ms", "is not a duration"),
        ("∞", "is not a duration"),
        ("inf", "is not a duration"),
        ("٣s", "is not a duration"),
        ("soon", "is not a duration"),
        ("no", "is not a duration"),
        ("", "is not a duration"),
        ("0s", "interval"),
        ("0h 0min", "interval"),
        ("31d", "longer than 30 days"),
        ("99999999999999999999s", "longer than 30 days"),
        ("9999999999999h 1s", "longer than 30 days"),
        ("0 steps", "never"),
        ("-3 steps", "is not a number of steps"),
        ("+3 steps", "is not a number of steps"),
        ("1.5 steps", "is not a number of steps"),
        ("steps", "is not a number of steps"),
        ("3  steps", "is not a number of steps"),
        ("18446744073709551616 steps", "is not a number of steps"),
    ] {
        let message = text.parse::<Every>().expect_err(text);
        assert!(message.contains(part), "{text}: {message}");
        assert!(message.contains("45min") && message.contains("100 steps"), "{text}: {message}");
    }
}

#[test]
fn timeouts_are_durations_and_may_be_zero() {
    assert_eq!("10min".parse(), Ok(Timeout(10 * MINUTE)));
    assert_eq!("0s".parse(), Ok(Timeout(Duration::ZERO)));
    for text in ["30", "30M", "1y", "100 steps", "1.5h", "", "∞", "-1s", "null", "31d"] {
        let message = text.parse::<Timeout>().expect_err(text);
        assert!(message.contains("10min"), "{text}: {message}");
    }
}

#[test]
fn texts_survive_a_round_trip() {
    for every in [Every::Steps(7), Every::Time(Duration::from_secs(90)), Every::Time(MINUTE * 60 * 24 * 30)] {
        assert_eq!(every.to_string().parse(), Ok(every));
    }
    for timeout in ["10min", "0s", "1h 30s"] {
        let timeout: Timeout = timeout.parse().expect("a duration");
        assert_eq!(timeout.to_string().parse(), Ok(timeout));
    }
    for resume in [Resume::Auto, Resume::None, Resume::From("runs/a".to_owned())] {
        assert_eq!(resume.to_string().parse(), Ok(resume));
    }
}

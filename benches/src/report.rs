//! Figures as they come: lines of a table, or of JSON.

use std::{io::Write as _, time::Duration};

use serde_json::{Value, json};

use crate::{Result, load::Seen};

/// One thing that a figure is to be.
pub struct Due {
    /// What, in words.
    pub what: String,
    /// What was reached.
    pub reached: f64,
    /// What was to be reached.
    pub bound: f64,
    /// Whether it was.
    pub met: bool,
}

impl Due {
    /// Something that is to be at least so much.
    pub fn at_least(what: &str, bound: f64, reached: f64) -> Self {
        Self { what: format!("{what} >= {bound:.2}"), reached, bound, met: reached >= bound }
    }

    /// Something that is to be at most so much.
    pub fn at_most(what: &str, bound: f64, reached: f64) -> Self {
        Self { what: format!("{what} <= {bound:.2}"), reached, bound, met: reached <= bound }
    }

    fn text(&self) -> String {
        format!("{} {}: {:.2}", if self.met { "ok    " } else { "MISSED" }, self.what, self.reached)
    }

    fn json(&self) -> Value {
        json!({ "what": self.what, "bound": self.bound, "reached": self.reached, "met": self.met })
    }
}

/// A rate beside its limits.
pub struct Rate {
    /// Its name.
    pub name: String,
    /// Of Keystead.
    pub own: Seen,
    /// Of the bare server, before and after.
    pub bare: [Seen; 2],
    /// Of raw appends, for writes.
    pub append: Option<Seen>,
    /// What it is to be.
    pub due: Vec<Due>,
}

impl Rate {
    /// Requests per second of the bare server, the mean of both runs.
    pub fn bare_per_second(&self) -> f64 {
        (self.bare[0].per_second + self.bare[1].per_second) / 2.0
    }

    /// The share of the bare server's rate that was reached.
    pub fn ratio(&self) -> f64 {
        self.own.per_second / self.bare_per_second()
    }
}

/// Prints figures and counts what was missed.
pub struct Report {
    json: bool,
    missed: usize,
    headed: bool,
}

impl Report {
    /// A report in one of the two forms.
    pub fn new(json: bool) -> Self {
        Self { json, missed: 0, headed: false }
    }

    /// How many figures were missed.
    pub fn missed(&self) -> usize {
        self.missed
    }

    /// Something worth knowing that is no figure. On standard error, so that JSON stays JSON.
    pub fn note(&self, text: &str) -> Result<()> {
        Ok(writeln!(std::io::stderr(), "# {text}")?)
    }

    /// Prints a rate.
    pub fn rate(&mut self, rate: &Rate) -> Result<()> {
        self.count(&rate.due);
        if self.json {
            return print(
                &json!({
                    "name": rate.name, "keystead": json_of(&rate.own), "ratio_to_bare": rate.ratio(),
                    "bare": rate.bare.iter().map(json_of).collect::<Vec<_>>(),
                    "append": rate.append.as_ref().map(json_of),
                    "due": rate.due.iter().map(Due::json).collect::<Vec<_>>(),
                })
                .to_string(),
            );
        }
        if !std::mem::replace(&mut self.headed, true) {
            print(
                "                         |       requests/s       |    p50 ms    |     p99 ms     | CPU us/request            | memory   | written | append  | other",
            )?;
            print(
                "name                     |    own   bare  ratio    |  own   bare  |   own    bare  | own (each)  bare  client  | MiB      | bytes   | /s      | load",
            )?;
        }
        print(&line(rate))?;
        self.dues(&rate.due)
    }

    /// Prints a figure that has no limit beside it.
    pub fn figure(&mut self, name: &str, text: &str, values: &Value, due: &[Due]) -> Result<()> {
        self.count(due);
        if self.json {
            let due: Vec<_> = due.iter().map(Due::json).collect();
            return print(&json!({ "name": name, "values": values, "due": due }).to_string());
        }
        print(&format!("{name:25}| {text}"))?;
        self.dues(due)
    }

    /// The last line.
    pub fn end(&self) -> Result<()> {
        if self.json { Ok(()) } else { print(&format!("{} figures missed", self.missed)) }
    }

    fn count(&mut self, due: &[Due]) {
        self.missed += due.iter().filter(|due| !due.met).count();
    }

    fn dues(&self, due: &[Due]) -> Result<()> {
        due.iter().try_for_each(|due| print(&format!("{:25}|   {}", "", due.text())))
    }
}

fn print(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

fn line(rate: &Rate) -> String {
    let ms = |duration: Duration| format!("{:.2}", duration.as_secs_f64() * 1e3);
    let mean = |f: fn(&Seen) -> Duration| (f(&rate.bare[0]) + f(&rate.bare[1])) / 2;
    let own = &rate.own;
    let each: Vec<_> = own.cpu.iter().map(|cpu| cpu.as_micros().to_string()).collect();
    let memory: Vec<_> = own.resident_kib.iter().map(|kib| (kib / 1024).to_string()).collect();
    let append = rate.append.as_ref().map_or_else(String::new, |seen| format!("{:.0}", seen.per_second));
    let cpu = format!("{} ({})", own.cpu_all().as_micros(), each.join(" "));
    format!(
        "{:25}| {:7.0} {:6.0} {:6.1} %  | {:>5} {:>6} | {:>7} {:>6} | {:17} {:>5} {:>6} | {:9}| {:7.0} | {:>7} | {:4.0} %",
        rate.name,
        own.per_second,
        rate.bare_per_second(),
        rate.ratio() * 100.0,
        ms(own.p50),
        ms(mean(|seen| seen.p50)),
        ms(own.p99),
        ms(mean(|seen| seen.p99)),
        cpu,
        mean(Seen::cpu_all).as_micros(),
        own.generator_cpu.as_micros(),
        memory.join(" "),
        own.written_all(),
        append,
        own.others * 100.0,
    )
}

fn json_of(seen: &Seen) -> Value {
    let us = |duration: &Duration| duration.as_secs_f64() * 1e6;
    json!({
        "per_second": seen.per_second, "p50_us": us(&seen.p50), "p99_us": us(&seen.p99),
        "cpu_us": us(&seen.cpu_all()), "cpu_us_each": seen.cpu.iter().map(us).collect::<Vec<_>>(),
        "generator_cpu_us": us(&seen.generator_cpu), "written_bytes": seen.written_all(),
        "resident_kib": seen.resident_kib, "other_load": seen.others,
    })
}

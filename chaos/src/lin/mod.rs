//! Whether what clients saw can be explained by one vault that does one thing at a time.
//!
//! Clients write, check-and-set, delete, read and list on all nodes while a schedule of faults runs. Every
//! operation is recorded with the moments between which it took effect, if it did; afterwards each folder's
//! history is given to a checker of linearizability (Herlihy and Wing, 1990). A folder is an object of its own,
//! so the whole is linearizable if each folder is; and as a folder retires after a few dozen operations, the
//! search stays small.
//!
//! Reading order: [`history`] (what is recorded), [`folder`] (what one folder should do), [`check`] (the
//! verdict), [`search`] (behind it), [`clients`] (who asks), [`faults`] (what is done to the nodes meanwhile),
//! [`trial`] (all of it together).

pub mod check;
pub mod clients;
pub mod faults;
pub mod folder;
pub mod history;
pub mod search;
pub mod seed;
pub mod trial;

pub use check::{Checked, Violation, check};
pub use clients::Habits;
pub use faults::Fault;
pub use folder::Folder;
pub use history::{Line, Op, Operation, Outcome, Recording, Ret};
pub use seed::Seed;
pub use trial::Trial;

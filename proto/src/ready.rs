//! What a service says of its readiness: function by function, so that an operator sees what does not work, and a probe
//! takes a node out of rotation only for what a client of that node would miss.

/// One thing that a service does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name, in a word.
    pub name: &'static str,
    /// Whether a client of this node misses it: then the node is to be taken out of rotation while it does not work.
    pub vital: bool,
    /// `Ok`, or why it does not work, in English.
    pub state: Result<(), String>,
}

impl Function {
    /// A function that a client of this node would miss.
    #[must_use]
    pub fn vital(name: &'static str, state: Result<(), String>) -> Self {
        Self { name, vital: true, state }
    }

    /// A function without which clients are still served.
    #[must_use]
    pub fn other(name: &'static str, state: Result<(), String>) -> Self {
        Self { name, vital: false, state }
    }
}

/// The first reason for which the node is to be taken out of rotation.
///
/// # Errors
/// That reason.
pub fn serves(functions: &[Function]) -> Result<(), String> {
    let broken = functions.iter().filter(|function| function.vital).find_map(|function| function.state.as_ref().err());
    broken.map_or(Ok(()), |reason| Err(reason.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_client_would_miss_takes_a_node_out_of_rotation() {
        let away = || Err("away".to_owned());
        assert_eq!(serves(&[Function::vital("publish", Ok(())), Function::other("routes", away())]), Ok(()));
        assert_eq!(serves(&[Function::other("routes", Ok(())), Function::vital("publish", away())]), away());
    }
}

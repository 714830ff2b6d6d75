//! Every error that a client or a caller can be told: whose fault, whether to retry, and how each protocol says it.
//! One table, one place: [`row`].

use crate::client::{Error, ErrorCode, Fault};

/// One error and what each protocol calls it.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The native protocol's code.
    pub code: ErrorCode,
    /// The name in HTTP's JSON and in metrics.
    pub name: &'static str,
    /// Who has to change something.
    pub fault: Fault,
    /// Whether the same request can succeed later.
    pub retry: bool,
    /// Status of an HTTP answer.
    pub http_status: u16,
    /// gRPC status code.
    pub grpc_code: i32,
    /// WebSocket close code where this ends a session: RFC 6455 section 7.4.1, or 4000 and a private number
    /// (section 7.4.2).
    pub close_code: u16,
    /// What it means, for the table in the documentation.
    pub meaning: &'static str,
}

macro_rules! table {
    ($($code:ident $name:literal $fault:ident $retry:literal $http:literal $grpc:literal $close:literal $meaning:literal;)+) => {
        /// All of them.
        pub const TABLE: &[Row] = &[$(Row {
            code: ErrorCode::$code, name: $name, fault: Fault::$fault, retry: $retry,
            http_status: $http, grpc_code: $grpc, close_code: $close, meaning: $meaning,
        }),+];
    };
}

// code            name                    fault  retry  http grpc close meaning
table! {
    None           "none"                  None   false  200  0   1000 "no error";
    BadRequest     "bad_request"           Client false  400  3   1002 "the bytes or the request make no sense";
    Unauthenticated "unauthenticated"      Client false  401  16  4001 "no token, or one that was not issued for here";
    TokenExpired   "token_expired"         Client true   401  16  4002 "the token has lapsed: get another, connect again";
    Forbidden      "forbidden"             Client false  403  7   4003 "the token, or the key, does not allow this";
    Muted          "muted"                 Client true   403  7   4004 "muted here for a time";
    Banned         "banned"                Client false  403  7   4005 "banned here for a time";
    NotSubscribed  "not_subscribed"        Client false  409  9   4006 "the session is not in that channel";
    TooLarge       "too_large"             Client false  413  3   1009 "larger than the limit that is named";
    TooFast        "too_fast"              Client true   429  8   4008 "more requests than the limit that is named: wait";
    TooManyRooms   "too_many_rooms"        Client false  429  8   4009 "the session is in as many rooms as it may be";
    TooManyConnections "too_many_connections" Client true 429 8   4010 "the address has as many connections as it may have";
    TooSlow        "too_slow"              Client true   408  4   4011 "does not read as fast as messages come";
    Idle           "idle"                  Client true   408  4   4012 "no heartbeat";
    Kicked         "kicked"                Client false  403  7   4013 "ended by the platform";
    Replaced       "replaced"              Client false  409  10  4014 "another session took the same key";
    Draining       "draining"              Server true   503  14  4015 "this node goes away: connect to another";
    Unavailable    "unavailable"           Server true   503  14  1013 "cannot be done now: try again";
    Internal       "internal"              Server true   500  13  1011 "a defect of the server's";
    Conflict       "conflict"              Client false  409  6   4019 "the same client message ID with another payload";
    NotFound       "not_found"             Client false  404  5   4020 "there is no such thing";
    InProgress     "in_progress"           Client true   409  10  4021 "the same request is under way: wait for its reply";
    OutcomeUnknown "outcome_unknown"       Server true   504  4   4022 "it may have been done or not: a retry with the same client message ID is safe";
}

/// What is known of `code`.
#[must_use]
pub fn row(code: ErrorCode) -> &'static Row {
    &TABLE[code as usize]
}

/// The error as the native protocol carries it.
#[must_use]
pub fn error(code: ErrorCode, message: impl Into<String>) -> Error {
    let row = row(code);
    Error { code: code.into(), message: message.into(), fault: row.fault.into(), retry: row.retry, retry_after_ms: 0 }
}

/// It is not known whether a message was accepted. Only one with a client message ID can be sent again without being
/// doubled.
#[must_use]
pub fn outcome_unknown(client_message_id: &str) -> Error {
    let safe = !client_message_id.is_empty();
    let text = match safe {
        true => format!(
            "it is not known whether the message was accepted: again with client_message_id {client_message_id:?} it has one effect"
        ),
        false => {
            "it is not known whether it was accepted, and without a client_message_id a retry may have a second effect"
                .to_owned()
        }
    };
    Error { retry: safe, ..error(ErrorCode::OutcomeUnknown, text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_says_which_retry_is_safe() {
        let known = outcome_unknown("a-1");
        assert!(known.retry && known.message.contains("\"a-1\""), "{known:?}");
        let unnamed = outcome_unknown("");
        assert!(!unnamed.retry && unnamed.message.contains("second effect"), "{unnamed:?}");
        assert_eq!(unnamed.code(), ErrorCode::OutcomeUnknown);
    }

    #[test]
    fn every_code_has_its_row_in_its_place() {
        for number in 0.. {
            let Ok(code) = ErrorCode::try_from(number) else {
                assert_eq!(number as usize, TABLE.len());
                break;
            };
            assert_eq!(row(code).code, code);
        }
    }

    #[test]
    fn close_codes_may_be_sent() {
        for row in TABLE {
            assert!(matches!(row.close_code, 1000..=1003 | 1007..=1014 | 4000..=4999), "{row:?}");
        }
    }
}

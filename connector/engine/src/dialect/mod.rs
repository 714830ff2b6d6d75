//! What clients ask and how they are answered: the native protocol, goim's and Bilibili's packets.

mod bilibili;
mod goim;
mod native;
mod packets;

//! Chat as live rooms have it, made from a number: the same text for the same number, so that what is measured with
//! compression can be measured again. Not anybody's real messages.
//!
//! What it copies of real rooms: a third of all messages are one of the memes of the moment, often with a tail of its
//! letters; most others are one short clause, Chinese more often than English, with a name, a number or an emoji in it;
//! few are longer than forty letters. A few people write much of it.

/// What everybody repeats.
const MEMES: &[&str] = &[
    "哈哈哈哈哈哈",
    "666",
    "前方高能",
    "awsl",
    "主播加油",
    "2333333",
    "泪目",
    "打卡",
    "好家伙",
    "绝了",
    "???",
    "yyds",
    "lol",
    "GG",
    "弹幕护体",
    "下次一定",
    "爷青回",
    "LET'S GO",
    "来了来了",
    "这波不亏",
    "OMEGALUL",
    "卧槽",
    "开始了开始了",
    "KEKW",
    "晚上好",
];
const OPENINGS: &[&str] = &[
    "这个",
    "主播",
    "刚才那波",
    "为什么",
    "我觉得",
    "有没有人",
    "今天",
    "第一次看",
    "所以",
    "别",
    "终于",
    "感觉",
    "求问",
    "the",
    "why is",
    "he",
    "this",
    "anyone know",
    "can we",
    "imagine",
];
const MIDDLES: &[&str] = &[
    "操作",
    "真的",
    "是不是",
    "太",
    "一直在",
    "已经",
    "又要",
    "直接",
    "居然",
    "从来没",
    "还能",
    "play",
    "was so",
    "always",
    "just got",
    "really",
    "the song",
    "that boss",
    "never",
];
const ENDINGS: &[&str] = &[
    "强了吧",
    "好听啊",
    "输了",
    "这么快",
    "什么歌",
    "看得懂",
    "没声音",
    "掉线了",
    "笑死我了",
    "太难了",
    "几点开始",
    "可以的",
    "clean",
    "again",
    "insane",
    "in chat",
    "for real",
    "tonight",
    "so good",
    "carried",
];
const EMOJI: &[&str] = &["😂", "🔥", "❤️", "👏", "[doge]", "[妙啊]", "😭", "✨"];
const NAMES: &[&str] = &[
    "夜雨声烦",
    "小熊软糖",
    "今天也要早睡",
    "nightowl",
    "柠檬不酸",
    "阿伟",
    "Kira_07",
    "路过的假面",
    "不吃香菜",
    "silverfox",
    "摸鱼冠军",
    "一只咸鱼",
];

/// splitmix64: the numbers drawn for one message.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut drawn = self.0;
        drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((drawn ^ (drawn >> 31)) % bound as u64) as usize
    }

    fn pick(&mut self, of: &[&'static str]) -> &'static str {
        of[self.below(of.len())]
    }
}

/// The text of message `number`.
#[must_use]
pub fn text(number: u64) -> String {
    let mut dice = Dice(number);
    // Memes have their moment: a few of them for some hundred messages.
    let moment = (number / 300) as usize;
    match dice.below(12) {
        0..4 => {
            let meme = MEMES[(moment * 5 + dice.below(6)) % MEMES.len()];
            let last = meme.chars().last().unwrap_or('!');
            let tail = if dice.below(3) == 0 { dice.below(12) } else { 0 };
            format!("{meme}{}", last.to_string().repeat(tail))
        }
        4 => format!("@{} {}", dice.pick(NAMES), dice.pick(ENDINGS)),
        5 => dice.pick(EMOJI).repeat(1 + dice.below(4)),
        kind => {
            let (opening, middle, ending) = (dice.pick(OPENINGS), dice.pick(MIDDLES), dice.pick(ENDINGS));
            let space = if opening.is_ascii() { " " } else { "" };
            let mut text = format!("{opening}{space}{middle}{space}{ending}");
            match kind {
                6 => text.push_str(dice.pick(EMOJI)),
                7 => text.push_str(&format!(" {}", dice.below(1000))),
                8 => text.push_str(&format!("，{}{}", dice.pick(MIDDLES), dice.pick(ENDINGS))),
                _ => {}
            }
            text
        }
    }
}

/// Who sent message `number`: a user's number, and a name. A tenth of the users send half of it.
#[must_use]
pub fn sender(number: u64) -> (u64, String) {
    let mut dice = Dice(!number);
    let user = if dice.below(2) == 0 { dice.below(50) } else { dice.below(500) };
    let mut of_user = Dice(user as u64 ^ 0x5eed);
    (10_000_000 + of_user.below(900_000_000) as u64, format!("{}{}", of_user.pick(NAMES), of_user.below(100)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_number_says_the_same_and_different_ones_mostly_not() {
        assert_eq!(text(7), text(7));
        assert_eq!(sender(7), sender(7));
        let texts: HashSet<_> = (0..3000).map(text).collect();
        assert!((1000..2800).contains(&texts.len()), "{}", texts.len());
        let senders: HashSet<_> = (0..3000).map(sender).collect();
        assert!((300..=500).contains(&senders.len()), "{}", senders.len());
    }

    #[test]
    fn messages_are_as_long_as_in_live_rooms() {
        let lengths: Vec<_> = (0..3000).map(|number| text(number).chars().count()).collect();
        assert!(lengths.iter().all(|length| (1..=80).contains(length)));
        let mean = lengths.iter().sum::<usize>() / lengths.len();
        assert!((5..20).contains(&mean), "{mean}");
    }
}

#![allow(clippy::unwrap_used)]
use super::*;
use crate::tasks::Input;

fn job(input: &str) -> CommandJob {
    CommandJob { input: Input::from(input), number: 7, id: 0, limit: None, stdin: None }
}

fn single() -> Replacements {
    Replacements { values: Some(1), ..Replacements::default() }
}

fn words(template: &str, input: &str) -> Vec<String> {
    let template = Template::new(template.split(' ').map(OsString::from), None, &single()).unwrap();
    texts(&template.words(&job(input), "2"))
}

fn texts(words: &Strings) -> Vec<String> {
    words.iter().map(|word| String::from_utf8(word.to_vec()).unwrap()).collect()
}

fn sh() -> Option<PathBuf> {
    Some("/bin/sh".into())
}

#[test]
fn each_place_stands_for_its_part_of_the_input() {
    let places = |input| words("{} {.} {/} {//} {#} {%}", input);
    assert_eq!(places("a/b.c.gz"), ["a/b.c.gz", "a/b.c", "b.c.gz", "a", "7", "2"]);
    assert_eq!(places("plain"), ["plain", "plain", "plain", ".", "7", "2"]);
    assert_eq!(places("/x"), ["/x", "/x", "x", "/", "7", "2"]);
    assert_eq!(places("d.d/.hidden"), ["d.d/.hidden", "d.d/.hidden", ".hidden", "d.d", "7", "2"]);
    assert_eq!(places("a.b/"), ["a.b/", "a.b/", "a.b", ".", "7", "2"]);
    assert_eq!(places("/"), ["/", "/", "/", "/", "7", "2"]);
    assert_eq!(places(".."), ["..", "..", "..", ".", "7", "2"]);
}

#[test]
fn an_input_is_one_word_whatever_is_in_it_and_is_appended_where_it_has_no_place() {
    assert_eq!(words("echo", "a b\n'c"), ["echo", "a b\n'c"]);
    assert_eq!(words("mv {} {/}.old-{}", "x/y"), ["mv", "x/y", "y.old-x/y"]);
    assert_eq!(words("echo {#}", "x"), ["echo", "7"], "another place is one too");
    assert_eq!(words("echo { {x} {}", "{.}"), ["echo", "{", "{x}", "{.}"]);
}

#[test]
fn in_a_shell_an_input_is_one_word_too() {
    let template =
        Template::new(["gzip -c {} >".into(), "{.}.gz".into()], sh(), &single()).unwrap();
    let words = texts(&template.words(&job("it's.$HOME"), "1"));
    let line = "procpool_1=$1; shift; procpool_2=$1; shift; \
                gzip -c \"${procpool_1}\" > \"${procpool_2}\".gz";
    assert_eq!(words, ["sh", "-c", line, "sh", "it's.$HOME", "it's"]);
    let line = template.line(&job("it's.$HOME"), "1");
    assert_eq!(String::from_utf8(line).unwrap(), r"gzip -c 'it'\''s.$HOME' > 'it'\''s'.gz");
}

#[test]
fn in_a_shell_an_input_within_quotes_is_refused() {
    let check = |line: &str| Template::new([OsString::from(line)], sh(), &single())?.check();
    for line in [
        "echo 'got {}'",
        "echo \"got {}\"",
        "echo `cat {}`",
        "echo $((1 + {}))",
        "echo x # {}",
        "cat <<E\n{}\nE",
        "echo $'{}'",
        "echo \\{}",
        "echo ${}",
        "sh -c 'echo {}'",
        "echo \"$(echo '{}')\"",
        "((x = {}))",
        "echo \"a\\\"{}\"",
        "cat <<'E' # x\n{/}\nE",
    ] {
        assert!(matches!(check(line), Err(TemplateError::NotAWord(..))), "{line}");
    }
    for line in [
        "cat {}",
        "echo 'it is '{}",
        "echo \"$(cat {})\"",
        "echo a#{} \"x\"{.}",
        "(cd {//}; ls)",
        "echo '# {#}' \"{%}\" {}",
        "cat <<< {}",
        "echo \"a\\\"\" {}",
        "echo '\\' {}",
        "x={}; echo \"$x\"",
    ] {
        assert_eq!(check(line), Ok(()), "{line}");
    }
}

#[test]
fn what_another_program_would_replace_is_refused_and_braces_are_not() {
    let check = |word: &str| Template::new([OsString::from(word)], None, &single())?.check();
    for word in ["{##}", "{= s/a/b/ =}", "{0#}", "{%%x}", "{+1}", "{....}", "{0}"] {
        assert!(matches!(check(word), Err(TemplateError::Unknown(..))), "{word}");
    }
    for word in ["{2}", "{2/}", "{-2}", "x{3.}"] {
        assert!(matches!(check(word), Err(TemplateError::NoSuchValue(_, 1))), "{word}");
    }
    for word in [
        "{print $1}",
        "{}",
        "{.}",
        "[0-9]{4}",
        "a{2}",
        "a{2,3}",
        "${1}",
        "\\d{3}",
        "{a,b}",
        "{",
        "}{",
        "{1..3}",
        "{\"a\": 1}",
        "{x}",
        "{ 1 }",
        "(ab){2}",
        ".{3}",
        "{//}{#}{%}",
        "{0:>3}",
    ] {
        assert_eq!(check(word), Ok(()), "{word}");
    }
}

#[test]
fn a_line_does_nothing_to_a_terminal() {
    let quoted = |word: &[u8]| String::from_utf8(quote(word).into_owned()).unwrap();
    assert_eq!(quoted(b"a\x1b[2Jb\n\t'\\"), r"$'a\033[2Jb\n\t\'\\'");
    assert_eq!(quoted(b"\xff1"), r"$'\3771'");
    assert_eq!(quoted("ü \u{9b}\u{202e}".as_bytes()), r"$'ü \302\233\342\200\256'");
    assert_eq!(quoted(r"a\b".as_bytes()), r"'a\b'");
}

#[test]
fn a_line_can_be_typed_again() {
    let line = |words: &[&str], input| {
        let template = Template::new(words.iter().map(OsString::from), None, &single()).unwrap();
        String::from_utf8(template.line(&job(input), "1")).unwrap()
    };
    assert_eq!(line(&["gzip", "-k"], "a/b.txt"), "gzip -k a/b.txt");
    assert_eq!(line(&["echo", "a b"], "it's"), r"echo 'a b' 'it'\''s'");
    assert_eq!(line(&["echo", ""], "$x"), "echo '' '$x'");
}

#[test]
fn a_program_is_found_as_a_shell_finds_it_or_its_absence_told() {
    let program =
        |word: &str| Template::new([OsString::from(word)], None, &single()).unwrap().program(None);
    assert!(program("sh").unwrap().unwrap().ends_with("sh"));
    assert_eq!(program("/bin/sh").unwrap(), Some("/bin/sh".into()));
    assert_eq!(program("{}").unwrap(), None);
    assert!(matches!(program("no-such-program"), Err(NoProgram::NotFound(_))));
    assert!(matches!(program("/nowhere/at/all"), Err(NoProgram::NotFound(_))));
    assert!(matches!(program("/etc/passwd"), Err(NoProgram::NotExecutable(_))));
    assert!(matches!(program("/etc"), Err(NoProgram::NotExecutable(_))));
    assert!(matches!(program(""), Err(NoProgram::NotFound(_))));
}

#[test]
fn parts_of_a_path_are_those_of_gnu_parallel() {
    let parts = "{/.} {..} {/..} {+/} {+.} {+..} {%.gz} {#a/} {04#} {03%} {1} {-1/.} {seq} {slot}";
    let expected = [
        "b.c", "a/b", "b", "a", "gz", "c.gz", "a/b.c", "b.c.gz", "0007", "002", "a/b.c.gz", "b.c",
        "7", "2",
    ];
    assert_eq!(words(parts, "a/b.c.gz"), expected);
    assert_eq!(words("[{..}] [{+/}] [{+.}] [{%x}]", "b.c"), ["[b.c]", "[]", "[c]", "[b.c]"]);
    assert_eq!(words("{/.} {+.}", "d.d/.hidden"), [".hidden", ""]);
}

#[test]
fn doubled_braces_and_another_string_keep_braces_as_text() {
    assert_eq!(
        words("{{}} {{.}} {{1}}-{} {{ {{x}} }}", "i"),
        ["{}", "{.}", "{1}-i", "{{", "{{x}}", "}}"]
    );
    assert_eq!(words("a{4} ${1} ${#x} {4x} {}", "i"), ["a{4}", "${1}", "${#x}", "{4x}", "i"]);
    let given = Replacements { input: Some(b"%".to_vec()), ..single() };
    let template = Template::new(["{}-%-{.}".into()], None, &given).unwrap();
    assert_eq!(texts(&template.words(&job("i.j"), "2")), ["{}-i.j-i"]);
}

#[test]
fn several_values_are_words_of_their_own() {
    let several =
        |values: &[&str]| CommandJob { input: Input::Several(values.iter().collect()), ..job("") };
    let given =
        Replacements { values: Some(2), names: Some(vec!["x".into(), "xy".into()]), ..single() };
    let template = |words: &[&str], shell| {
        Template::new(words.iter().map(OsString::from), shell, &given).unwrap()
    };
    let values = several(&["a b.c", "d"]);
    let spread = template(&["p", "{}", "-{.}-", "a{1}{2}", "{xy}{x.}"], None);
    let expected = ["p", "a b.c", "d", "-a b", "d-", "aa b.cd", "da b"];
    assert_eq!(texts(&spread.words(&values, "1")), expected);
    let repeated = template(&["p", "<{}{.}>", "{#}"], None).repeating_words();
    assert_eq!(texts(&repeated.words(&values, "1")), ["p", "<a b.ca b>", "<dd>", "7"]);
    let shell = texts(&template(&["p {} {} {2} | q"], sh()).words(&values, "1"));
    let script = "procpool_1=$1; shift; procpool_2=$1; shift; procpool_3=$1; shift; p \"${procpool_1}\" \
                  \"${procpool_2}\" \"${procpool_1}\" \"${procpool_2}\" \"${procpool_3}\" | q";
    assert_eq!(shell, ["sh", "-c", script, "sh", "a b.c", "d", "d"]);
    let error = Template::new(["{nobody}".into()], None, &given).unwrap_err().to_string();
    assert!(error.contains("{x} {xy}"), "{error}");
}

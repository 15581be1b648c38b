//! Vectors of RFC 7515, RFC 8037 and Wycheproof, and attacks on the verification.

use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::KeyPair as _;
use ring::{hmac, rand, signature as ring_signature};
use serde_json::{Value, json};
use wycheproof::TestResult;

use super::verifier::Source;
use super::*;

const NOW: u64 = 1_700_000_000;
const SECRET: &[u8] = b"a secret of enough bytes for each of the three hashes of HMAC, 64";

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn secret_jwk() -> Value {
    json!({"kty": "oct", "k": encode(SECRET)})
}

/// A token with an HMAC, whatever its header says.
fn hmac_token(header: &str, claims: &str, secret: &[u8]) -> String {
    let signed = format!("{}.{}", encode(header), encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", encode(tag))
}

fn token(claims: &Value) -> String {
    hmac_token(r#"{"alg":"HS256"}"#, &claims.to_string(), SECRET)
}

fn keys(jwks: &[Value]) -> Rc<KeySet> {
    Rc::new(KeySet::parse(json!({"keys": jwks}).to_string().as_bytes(), &[]).unwrap())
}

fn verifier(jwks: &[Value]) -> Verifier {
    Verifier {
        sources: vec![Source {
            issuer: None,
            keys: keys(jwks),
        }],
        leeway: 30,
        ..Verifier::default()
    }
}

/// The whole verdict on a token at [`NOW`].
fn judge(verifier: &Verifier, text: &str) -> Result<Token, Rejection> {
    let token = verifier.verify(text.as_bytes())?;
    verifier.check(&token, NOW)?;
    Ok(token)
}

// RFC 7515, appendix A: the same claims, signed in three ways.
const JOE: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const A1_KEY: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
const A2_MODULUS: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
const A2_SIGNATURE: &str = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";

fn a2_jwk() -> Value {
    json!({"kty": "RSA", "n": A2_MODULUS, "e": "AQAB"})
}

fn a3_jwk() -> Value {
    json!({
        "kty": "EC",
        "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    })
}

fn a1_token() -> String {
    format!("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{JOE}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
}

fn a2_token() -> String {
    format!("eyJhbGciOiJSUzI1NiJ9.{JOE}.{A2_SIGNATURE}")
}

fn a3_token() -> String {
    let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    format!("eyJhbGciOiJFUzI1NiJ9.{JOE}.{signature}")
}

#[test]
fn the_tokens_of_rfc_7515_are_verified_each_by_its_key() {
    let jwks = [json!({"kty": "oct", "k": A1_KEY}), a2_jwk(), a3_jwk()];
    let texts = [a1_token(), a2_token(), a3_token()];
    for (index, text) in texts.iter().enumerate() {
        let token = verifier(&jwks).verify(text.as_bytes()).unwrap();
        assert_eq!(token.expires, Some(1_300_819_380));
        assert_eq!(token.check(1_300_819_379, 0, &Revocations::default()), Ok(()));
        assert_eq!(
            token.check(1_300_819_380, 0, &Revocations::default()),
            Err(Rejection::Expired)
        );
        for (other, jwk) in jwks.iter().enumerate() {
            let verdict = verifier(std::slice::from_ref(jwk)).verify(text.as_bytes());
            let wanted = if other == index { Ok(()) } else { Err(Rejection::Key) };
            assert_eq!(verdict.map(drop), wanted, "token {index} by key {other}");
        }
    }
}

#[test]
fn no_bit_of_a_token_can_be_changed() {
    let verifier = verifier(&[json!({"kty": "oct", "k": A1_KEY}), a2_jwk(), a3_jwk()]);
    for text in [a1_token(), a2_token(), a3_token()] {
        for index in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
            assert!(verifier.verify(&bytes).is_err(), "at {index} of {text}");
            bytes.remove(index);
            assert!(verifier.verify(&bytes).is_err(), "without {index} of {text}");
        }
    }
}

#[test]
fn the_signature_of_rfc_8037_is_verified() {
    let keys = keys(&[json!({
        "kty": "OKP",
        "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    })]);
    let signed = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let [key] = keys.keys() else { panic!("one key") };
    for name in ["EdDSA", "Ed25519"] {
        assert!(key.verifies(Algorithm::named(name).unwrap(), signed, signature));
    }
    assert!(!key.verifies(Algorithm::named("EdDSA").unwrap(), &signed[1..], signature));
    assert!(!key.verifies(Algorithm::named("ES256").unwrap(), signed, signature));
}

/// Checks one vector with a key from PEM; `must` is what the verdict has to be.
fn check_vector(algorithm: &str, keys: &KeySet, signed: &[u8], signature: &[u8], result: TestResult, what: &str) {
    let algorithm = Algorithm::named(algorithm).unwrap();
    let [key] = keys.keys() else { panic!("one key") };
    let verified = key.verifies(algorithm, signed, &encode(signature));
    match result {
        TestResult::Valid => assert!(verified, "{what}"),
        TestResult::Invalid => assert!(!verified, "{what}"),
        TestResult::Acceptable => {}
    }
}

#[test]
fn wycheproof_ecdsa() {
    use wycheproof::ecdsa::{TestName, TestSet};
    for (algorithm, name) in [
        ("ES256", TestName::EcdsaSecp256r1Sha256P1363),
        ("ES384", TestName::EcdsaSecp384r1Sha384P1363),
    ] {
        let mut count = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            let keys = KeySet::parse(group.pem.as_bytes(), &[]).unwrap();
            for test in group.tests {
                let what = format!("{algorithm} {}: {}", test.tc_id, test.comment);
                check_vector(algorithm, &keys, &test.msg, &test.sig, test.result, &what);
                count += 1;
            }
        }
        assert!(count > 100, "{count} vectors of {algorithm}");
    }
}

#[test]
fn wycheproof_eddsa() {
    use wycheproof::eddsa::{TestName, TestSet};
    let mut count = 0;
    for group in TestSet::load(TestName::Ed25519).unwrap().test_groups {
        let keys = KeySet::parse(group.pem.as_bytes(), &[]).unwrap();
        for test in group.tests {
            let what = format!("EdDSA {}: {}", test.tc_id, test.comment);
            check_vector("EdDSA", &keys, &test.msg, &test.sig, test.result, &what);
            count += 1;
        }
    }
    assert!(count > 100, "{count} vectors");
}

#[test]
fn wycheproof_rsa() {
    use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};
    for (algorithm, name) in [
        ("RS256", TestName::Rsa2048Sha256),
        ("RS384", TestName::Rsa2048Sha384),
        ("RS512", TestName::Rsa2048Sha512),
        ("RS256", TestName::Rsa4096Sha256),
    ] {
        let mut count = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            let Ok(keys) = KeySet::parse(group.pem.as_bytes(), &[]) else {
                continue;
            };
            for test in group.tests {
                let what = format!("{algorithm} {}: {}", test.tc_id, test.comment);
                check_vector(algorithm, &keys, &test.msg, &test.sig, test.result, &what);
                count += 1;
            }
        }
        assert!(count > 100, "{count} vectors of {algorithm}");
    }
}

#[test]
fn wycheproof_rsa_pss() {
    use wycheproof::rsa_pss_verify::{TestName, TestSet};
    for (algorithm, name) in [
        ("PS256", TestName::RsaPss2048Sha256Mgf1SaltLen32),
        ("PS384", TestName::RsaPss2048Sha384Mgf1SaltLen48),
        ("PS512", TestName::RsaPss4096Sha512Mgf1SaltLen64),
    ] {
        let mut count = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            let keys = KeySet::parse(group.pem.as_bytes(), &[]).unwrap();
            for test in group.tests {
                let what = format!("{algorithm} {}: {}", test.tc_id, test.comment);
                check_vector(algorithm, &keys, &test.msg, &test.sig, test.result, &what);
                count += 1;
            }
        }
        assert!(count > 50, "{count} vectors of {algorithm}");
    }
}

#[test]
fn wycheproof_hmac() {
    use wycheproof::mac::{TestName, TestSet};
    for (algorithm, name) in [
        ("HS256", TestName::HmacSha256),
        ("HS384", TestName::HmacSha384),
        ("HS512", TestName::HmacSha512),
    ] {
        let algorithm_bits = Algorithm::named(algorithm).unwrap().hash_len() * 8;
        let mut count = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            for test in group.tests {
                let jwk = json!({"kty": "oct", "k": encode(&test.key)}).to_string();
                let Ok(keys) = KeySet::parse(jwk.as_bytes(), &[]) else {
                    assert!(test.key.len() < 32);
                    continue;
                };
                let what = format!("{algorithm} {}: {}", test.tc_id, test.comment);
                // A tag that is cut off is no signature of a token.
                let whole = group.tag_size == algorithm_bits && group.key_size >= algorithm_bits;
                let result = if whole { test.result } else { TestResult::Invalid };
                check_vector(algorithm, &keys, &test.msg, &test.tag, result, &what);
                count += usize::from(whole);
            }
        }
        assert!(count > 50, "{count} vectors of {algorithm}");
    }
}

#[test]
fn an_unsigned_token_is_refused() {
    let verifier = verifier(&[secret_jwk(), a2_jwk()]);
    for algorithm in ["none", "None", "NONE", "nOnE", ""] {
        let header = encode(format!(r#"{{"alg":"{algorithm}"}}"#));
        for signature in ["", "AA"] {
            let verdict = judge(&verifier, &format!("{header}.{}.{signature}", encode("{}")));
            assert_eq!(verdict, Err(Rejection::Algorithm), "{algorithm:?}");
        }
    }
    let whole = token(&json!({}));
    let (signed, _) = whole.rsplit_once('.').unwrap();
    assert_eq!(judge(&verifier, &format!("{signed}.")), Err(Rejection::Malformed));
    assert_eq!(judge(&verifier, signed), Err(Rejection::Malformed));
    assert_eq!(judge(&verifier, &whole).map(drop), Ok(()));
}

#[test]
fn a_public_key_is_no_secret() {
    // The attack: sign with HMAC, with the text or the numbers of a public key that everybody knows.
    let pem = rsa_pem();
    let modulus = URL_SAFE_NO_PAD.decode(A2_MODULUS).unwrap();
    for secret in [pem.as_bytes(), modulus.as_slice(), A2_MODULUS.as_bytes()] {
        let forged = hmac_token(r#"{"alg":"HS256"}"#, "{}", secret);
        assert_eq!(judge(&verifier(&[a2_jwk(), a3_jwk()]), &forged), Err(Rejection::Key));
        let mut in_pem = verifier(&[a2_jwk()]);
        in_pem.sources[0].keys = Rc::new(KeySet::parse(pem.as_bytes(), &[]).unwrap());
        assert_eq!(judge(&in_pem, &forged), Err(Rejection::Key));
    }
    // And the other way round: a token of the secret that claims to be of RSA or of a curve.
    for algorithm in ["RS256", "PS256", "ES256", "EdDSA", "HS384"] {
        let forged = hmac_token(&format!(r#"{{"alg":"{algorithm}"}}"#), "{}", SECRET);
        let verdict = judge(&verifier(&[secret_jwk(), a2_jwk(), a3_jwk()]), &forged);
        assert!(
            matches!(verdict, Err(Rejection::Key | Rejection::Signature)),
            "{algorithm}"
        );
    }
}

/// The key of RFC 7515 A.2 in PEM.
fn rsa_pem() -> String {
    let modulus = URL_SAFE_NO_PAD.decode(A2_MODULUS).unwrap();
    let key = [
        &[0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0x00][..],
        &modulus,
        &[2, 3, 1, 0, 1],
    ]
    .concat();
    let algorithm = [0x30, 0x0d, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
    let bits = [&[0x03, 0x82, 0x01, 0x0f, 0x00][..], &key].concat();
    let info = [&[0x30, 0x82, 0x01, 0x22][..], &algorithm, &bits].concat();
    let body = base64::engine::general_purpose::STANDARD.encode(info);
    let lines: Vec<_> = body
        .as_bytes()
        .chunks(64)
        .map(|line| str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        lines.join("\n")
    )
}

#[test]
fn a_key_in_pem_is_the_key_in_a_set() {
    let mut verifier = verifier(&[a2_jwk()]);
    verifier.sources[0].keys = Rc::new(KeySet::parse(rsa_pem().as_bytes(), &[]).unwrap());
    assert_eq!(verifier.verify(a2_token().as_bytes()).map(drop), Ok(()));
}

#[test]
fn a_token_may_not_bring_its_own_key() {
    let verifier = verifier(&[secret_jwk()]);
    let jwk = secret_jwk().to_string();
    for member in [
        r#""crit":["exp"],"exp":1"#,
        r#""crit":[]"#,
        r#""jku":"https://attacker.example/keys""#,
        r#""x5u":"https://attacker.example/chain""#,
        &format!(r#""jwk":{jwk}"#),
        r#""b64":false"#,
        r#""zip":"DEF""#,
        r#""enc":"A128GCM""#,
        r#""jku":null"#,
    ] {
        let text = hmac_token(&format!(r#"{{"alg":"HS256",{member}}}"#), "{}", SECRET);
        assert_eq!(judge(&verifier, &text), Err(Rejection::Header), "{member}");
    }
}

#[test]
fn duplicate_members_are_refused_in_header_and_claims() {
    let verifier = verifier(&[secret_jwk()]);
    let header = hmac_token(r#"{"alg":"HS256","alg":"HS256"}"#, "{}", SECRET);
    assert_eq!(judge(&verifier, &header), Err(Rejection::Malformed));
    for claims in [
        r#"{"sub":"a","sub":"b"}"#,
        r#"{"exp":1,"exp":9999999999}"#,
        r#"{"push":{"subscribe":[],"subscribe":["x"]}}"#,
    ] {
        let text = hmac_token(r#"{"alg":"HS256"}"#, claims, SECRET);
        assert_eq!(judge(&verifier, &text), Err(Rejection::Malformed), "{claims}");
    }
}

#[test]
fn only_the_canonical_compact_form_is_read() {
    let verifier = verifier(&[secret_jwk()]);
    let text = token(&json!({"sub": "42"}));
    assert_eq!(judge(&verifier, &text).map(drop), Ok(()));
    let [header, claims, signature] = text.split('.').collect::<Vec<_>>()[..] else {
        panic!("three parts")
    };
    // The last letter of 32 bytes has four bits of which two are zero.
    let last = signature.chars().last().unwrap();
    let other = char::from(last as u8 + 1);
    for text in [
        format!("{text}="),
        format!("{text}."),
        format!(".{text}"),
        format!(" {text}"),
        format!("{text}\n"),
        format!(
            "{header}.{claims}.{}",
            signature.replace(['-', '_'], "+").replace('A', "/")
        ),
        format!("{header}.{claims}.{}{other}", &signature[..signature.len() - 1]),
        format!("{header}=.{claims}.{signature}"),
        format!("{header}..{signature}"),
        format!("{header}.{claims}.{signature}.{signature}.{signature}"),
        json!({"protected": header, "payload": claims, "signature": signature}).to_string(),
        "a".into(),
        "..".into(),
    ] {
        assert!(judge(&verifier, &text).is_err(), "{text}");
    }
    assert_eq!(verifier.verify(b""), Err(Rejection::Missing));
    assert_eq!(verifier.verify(b"\xff.\xff.\xff"), Err(Rejection::Malformed));
}

#[test]
fn a_token_has_at_most_eight_kibibytes() {
    let verifier = verifier(&[secret_jwk()]);
    let of = |len: usize| token(&json!({"x": "y".repeat(len)}));
    let fits = (5000..7000)
        .map(of)
        .take_while(|text| text.len() <= LONGEST)
        .last()
        .unwrap();
    assert!(fits.len() > LONGEST - 4);
    assert_eq!(judge(&verifier, &fits).map(drop), Ok(()));
    assert_eq!(judge(&verifier, &of(6200)), Err(Rejection::TooLong));
}

#[test]
fn times_are_checked_with_leeway() {
    let verifier = verifier(&[secret_jwk()]);
    let verdict = |claims: Value| judge(&verifier, &token(&claims)).map(drop);
    for (claims, wanted) in [
        (json!({"exp": NOW - 29}), Ok(())),
        (json!({"exp": NOW - 30}), Err(Rejection::Expired)),
        (json!({"exp": NOW as f64 - 28.5}), Ok(())),
        (json!({"nbf": NOW + 30}), Ok(())),
        (json!({"nbf": NOW + 31}), Err(Rejection::NotYet)),
        (json!({"iat": NOW + 31}), Err(Rejection::NotYet)),
        (json!({"nbf": NOW - 9, "iat": NOW + 31}), Err(Rejection::NotYet)),
        (json!({"exp": 0}), Err(Rejection::Expired)),
        (json!({"exp": u64::MAX}), Ok(())),
        (json!({"exp": 1e300}), Err(Rejection::Claims)),
        (json!({"exp": -1}), Err(Rejection::Claims)),
        (json!({"exp": "1800000000"}), Err(Rejection::Claims)),
        (json!({"exp": null}), Err(Rejection::Claims)),
        (json!({"sub": 42}), Err(Rejection::Claims)),
        (json!({"jti": ["a"]}), Err(Rejection::Claims)),
    ] {
        assert_eq!(verdict(claims.clone()), wanted, "{claims}");
    }
}

#[test]
fn the_audience_must_fit() {
    let mut verifier = verifier(&[secret_jwk()]);
    let mut verdict = |own: &[&str], claims: Value| {
        verifier.audience = own.iter().map(|own| own.to_string()).collect();
        judge(&verifier, &token(&claims)).map(drop)
    };
    assert_eq!(verdict(&[], json!({})), Ok(()));
    assert_eq!(verdict(&[], json!({"aud": "push"})), Err(Rejection::Audience));
    assert_eq!(verdict(&["push"], json!({})), Err(Rejection::Audience));
    assert_eq!(verdict(&["push"], json!({"aud": "push"})), Ok(()));
    assert_eq!(verdict(&["a", "push"], json!({"aud": ["x", "push"]})), Ok(()));
    assert_eq!(
        verdict(&["push"], json!({"aud": ["PUSH", "pushy"]})),
        Err(Rejection::Audience)
    );
    assert_eq!(verdict(&["push"], json!({"aud": ["push", 1]})), Err(Rejection::Claims));
    assert_eq!(verdict(&["push"], json!({"aud": {"push": 1}})), Err(Rejection::Claims));
}

#[test]
fn keys_are_bound_to_their_issuer() {
    let other = b"another secret of thirty-two bytes, or more";
    let mut verifier = verifier(&[secret_jwk()]);
    verifier.sources = vec![
        Source {
            issuer: Some("https://a.example".into()),
            keys: keys(&[secret_jwk()]),
        },
        Source {
            issuer: Some("https://b.example".into()),
            keys: keys(&[json!({"kty": "oct", "k": encode(other)})]),
        },
    ];
    let of = |issuer: Value, secret: &[u8]| {
        let text = hmac_token(r#"{"alg":"HS256"}"#, &json!({ "iss": issuer }).to_string(), secret);
        judge(&verifier, &text).map(drop)
    };
    assert_eq!(of(json!("https://a.example"), SECRET), Ok(()));
    assert_eq!(of(json!("https://b.example"), other), Ok(()));
    assert_eq!(of(json!("https://b.example"), SECRET), Err(Rejection::Signature));
    assert_eq!(of(json!("https://c.example"), SECRET), Err(Rejection::Issuer));
    assert_eq!(of(json!(["https://a.example"]), SECRET), Err(Rejection::Claims));
    assert_eq!(judge(&verifier, &token(&json!({}))), Err(Rejection::Issuer));
}

#[test]
fn the_key_is_picked_by_its_name_or_one_of_four() {
    let decoy = |number: usize| json!({"kty": "oct", "k": encode(format!("decoy number {number:020}!"))});
    let with = |mut jwk: Value, id: &str| {
        jwk["kid"] = json!(id);
        jwk
    };
    let named = |id: &str| hmac_token(&json!({"alg": "HS256", "kid": id}).to_string(), "{}", SECRET);
    let unnamed = token(&json!({}));
    // In any place, if the name is given.
    let mut many: Vec<Value> = (0..20)
        .map(|number| with(decoy(number), &format!("d{number}")))
        .collect();
    many.push(with(secret_jwk(), "mine"));
    assert_eq!(judge(&verifier(&many), &named("mine")).map(drop), Ok(()));
    assert_eq!(judge(&verifier(&many), &named("d3")), Err(Rejection::Signature));
    assert_eq!(judge(&verifier(&many), &named("other")), Err(Rejection::Key));
    // Without a name the fifth is not tried.
    let at = |place: usize| {
        let mut jwks: Vec<Value> = (0..place).map(decoy).collect();
        jwks.push(secret_jwk());
        jwks
    };
    assert_eq!(judge(&verifier(&at(3)), &unnamed).map(drop), Ok(()));
    assert_eq!(judge(&verifier(&at(4)), &unnamed), Err(Rejection::Signature));
    // A token with a name may be of a key without one.
    assert_eq!(judge(&verifier(&at(1)), &named("mine")).map(drop), Ok(()));
    // A name that is used twice: both are tried.
    let twice = [with(decoy(0), "mine"), with(secret_jwk(), "mine")];
    assert_eq!(judge(&verifier(&twice), &named("mine")).map(drop), Ok(()));
    for id in [json!(1), json!(null)] {
        let text = hmac_token(&json!({"alg": "HS256", "kid": id}).to_string(), "{}", SECRET);
        assert_eq!(judge(&verifier(&at(0)), &text), Err(Rejection::Malformed));
    }
}

#[test]
fn what_was_revoked_is_refused_from_then_on() {
    let mut verifier = verifier(&[secret_jwk()]);
    let text = token(&json!({"sub": "42", "jti": "t1"}));
    assert_eq!(judge(&verifier, &text).map(drop), Ok(()));
    for line in ["jti=t1", "sub=42"] {
        verifier.revocations = Rc::new(Revocations::parse(line.as_bytes()).unwrap());
        assert_eq!(judge(&verifier, &text), Err(Rejection::Revoked));
    }
    verifier.revocations = Rc::new(Revocations::parse(b"jti=42\nsub=t1").unwrap());
    assert_eq!(judge(&verifier, &text).map(drop), Ok(()));
}

/// What a token grants, as ids of a few channels.
fn granted(dialect: Dialect, claims: Value) -> Result<(Vec<&'static str>, Vec<&'static str>), Rejection> {
    let verifier = Verifier {
        dialect,
        ..verifier(&[secret_jwk()])
    };
    let token = judge(&verifier, &token(&claims))?;
    let ids = [
        "news",
        "user.42.mail",
        "user.43.mail",
        "https://example.com/books/1",
        "chat.7",
    ];
    let of = |grants: &Grants| ids.into_iter().filter(|id| grants.allows(id.as_bytes())).collect();
    Ok((of(&token.subscribe), of(&token.publish)))
}

#[test]
fn native_claims() {
    let grants = |push: Value| granted(Dialect::Native, json!({ "push": push }));
    assert_eq!(
        grants(json!({"subscribe": ["news", "user.42.*"], "publish": ["chat.7"]})),
        Ok((vec!["news", "user.42.mail"], vec!["chat.7"]))
    );
    assert_eq!(grants(json!({"subscribe": ["*", "n*"]})), Ok((vec![], vec![])));
    assert_eq!(grants(json!({})), Ok((vec![], vec![])));
    assert_eq!(granted(Dialect::Native, json!({})), Ok((vec![], vec![])));
    for wrong in [
        json!("news"),
        json!({"subscribe": "news"}),
        json!({"publish": [1]}),
        json!(null),
    ] {
        assert_eq!(grants(wrong.clone()), Err(Rejection::Claims), "{wrong}");
    }
    // Other dialects' claims mean nothing.
    let foreign = json!({"mercure": {"subscribe": ["*"]}, "channels": ["news"], "channel": "news"});
    assert_eq!(granted(Dialect::Native, foreign), Ok((vec![], vec![])));
}

#[test]
fn mercure_claims() {
    let grants = |claims: Value| granted(Dialect::Mercure, claims);
    let everything = vec![
        "news",
        "user.42.mail",
        "user.43.mail",
        "https://example.com/books/1",
        "chat.7",
    ];
    assert_eq!(
        grants(
            json!({"mercure": {"publish": ["*"], "subscribe": ["https://example.com/books/*", "news"], "payload": {}}})
        ),
        Ok((vec!["news", "https://example.com/books/1"], everything.clone()))
    );
    let detail = |actions: Value, topics: Value| {
        json!({"authorization_details": [
            {"type": "tenant", "topics": "acme", "actions": {"read": true}},
            {"type": "https://mercure.rocks/authorization-detail", "actions": actions, "topics": topics},
        ]})
    };
    assert_eq!(
        grants(detail(
            json!(["subscribe"]),
            json!([{"match": "news"}, {"match": "user.42*"}])
        )),
        Ok((vec!["news"], vec![]))
    );
    assert_eq!(
        grants(detail(
            json!(["publish", "subscribe", "other"]),
            json!([{"match": "*"}])
        )),
        Ok((everything.clone(), everything))
    );
    let pattern = |pattern: &str| {
        grants(detail(
            json!(["subscribe"]),
            json!([{"match": pattern, "match_type": "urlpattern"}]),
        ))
    };
    assert_eq!(
        pattern("https://example.com/books/*"),
        Ok((vec!["https://example.com/books/1"], vec![]))
    );
    for richer in [
        "https://example.com/books/:id",
        "https://example.com/{books/}?*",
        "https://*/books/1",
        "(.*)",
    ] {
        assert_eq!(pattern(richer), Ok((vec![], vec![])), "{richer}");
    }
    for wrong in [
        json!({"authorization_details": {}}),
        json!({"authorization_details": [1]}),
        detail(json!("subscribe"), json!([])),
        detail(json!(["subscribe"]), json!([{"match_type": "exact"}])),
        detail(json!(["subscribe"]), json!([null])),
        json!({"mercure": []}),
    ] {
        assert_eq!(grants(wrong.clone()), Err(Rejection::Claims), "{wrong}");
    }
}

#[test]
fn centrifugo_claims() {
    let grants = |claims: Value| granted(Dialect::Centrifugo, claims);
    assert_eq!(
        grants(json!({"sub": "42", "channels": ["news", "user.*"]})),
        Ok((vec!["news"], vec![]))
    );
    assert_eq!(
        grants(json!({"sub": "42", "channel": "chat.7"})),
        Ok((vec!["chat.7"], vec![]))
    );
    assert_eq!(grants(json!({"channels": "news"})), Err(Rejection::Claims));
    let verifier = Verifier {
        dialect: Dialect::Centrifugo,
        ..verifier(&[secret_jwk()])
    };
    let end = |claims: Value| judge(&verifier, &token(&claims)).map(|token| token.ends);
    assert_eq!(end(json!({"exp": NOW + 9})), Ok(Some(NOW + 9)));
    assert_eq!(end(json!({"exp": NOW + 9, "expire_at": NOW + 99})), Ok(Some(NOW + 99)));
    assert_eq!(end(json!({"exp": NOW + 9, "expire_at": 0})), Ok(None));
    assert_eq!(
        end(json!({"exp": NOW + 9, "expire_at": NOW - 99})),
        Err(Rejection::Expired)
    );
    assert_eq!(
        end(json!({"exp": NOW - 99, "expire_at": NOW + 99})),
        Err(Rejection::Expired)
    );
}

#[test]
fn grants_are_bounded() {
    let verdict = |subscribe: Vec<String>, publish: Vec<String>| {
        let claims = json!({"push": {"subscribe": subscribe, "publish": publish}});
        judge(&verifier(&[secret_jwk()]), &token(&claims)).map(drop)
    };
    let some = |count: usize| (0..count).map(|number| format!("c{number}")).collect::<Vec<_>>();
    assert_eq!(verdict(some(64), vec![]), Ok(()));
    assert_eq!(verdict(some(32), some(32)), Ok(()));
    assert_eq!(verdict(some(33), some(32)), Err(Rejection::Grants));
    assert_eq!(verdict(vec!["c".repeat(255)], vec![]), Ok(()));
    assert_eq!(verdict(vec!["c".repeat(256)], vec![]), Err(Rejection::Grants));
}

#[test]
fn key_files_that_are_refused_say_why() {
    let short = json!({"keys": [{"kty": "oct", "k": encode([1; 31])}]}).to_string();
    let weak = json!({"keys": [a3_jwk(), {"kty": "RSA", "n": encode([255; 255]), "e": "AQAB"}]}).to_string();
    let even = json!({"keys": [{"kty": "RSA", "n": A2_MODULUS, "e": "AQAA"}]}).to_string();
    let huge = json!({"keys": [{"kty": "RSA", "n": encode([255; 1025]), "e": "AQAB"}]}).to_string();
    let odd = json!({"keys": [{"kty": "RSA", "alg": "HS256", "n": A2_MODULUS, "e": "AQAB"}]}).to_string();
    let small_for_hash = json!({"keys": [{"kty": "oct", "alg": "HS512", "k": encode([1; 63])}]}).to_string();
    let unused =
        json!({"keys": [{"kty": "RSA", "use": "enc", "n": A2_MODULUS, "e": "AQAB"}, {"kty": "AKP"}]}).to_string();
    let private = rsa_pem().replace("PUBLIC", "PRIVATE");
    let damaged = rsa_pem().replacen("MIIB", "MIIA", 1);
    for (file, reason) in [
        ("", "is neither a JWK Set nor PEM with a PUBLIC KEY"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "is neither a JWK Set nor PEM with a PUBLIC KEY",
        ),
        ("{", "is no JSON, or has a duplicate member"),
        ("{}", "is no JWK Set: the member keys is missing"),
        (r#"{"keys":{}}"#, "is no JWK Set: keys is no array"),
        (r#"{"keys":[]}"#, "has no key that verifies signatures"),
        (r#"{"keys":[1]}"#, "key 1: is no object"),
        (
            r#"{"keys":[{"kty":"oct","kty":"oct"}]}"#,
            "is no JSON, or has a duplicate member",
        ),
        (r#"{"keys":[{"kty":"oct"}]}"#, "key 1: k is missing"),
        (r#"{"keys":[{"kty":"oct","k":"a b"}]}"#, "key 1: k is no base64url"),
        (
            r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#,
            "key 1: coordinates of 32 bytes are wanted",
        ),
        (&short, "key 1: a secret of 31 bytes: at least 32 are accepted"),
        (
            &weak,
            "key 2: RSA with 2040 bits: at least 2048 and at most 8192 are accepted",
        ),
        (
            &huge,
            "key 1: RSA with 8200 bits: at least 2048 and at most 8192 are accepted",
        ),
        (&even, "key 1: RSA with an exponent that is not accepted"),
        (&odd, "key 1: alg HS256 does not go with this key"),
        (&small_for_hash, "key 1: alg HS512 does not go with this key"),
        (&unused, "has no key that verifies signatures"),
        (&private, "has a private key: the public one is wanted"),
        (&damaged, "key 1: is no public key in DER"),
    ] {
        assert_eq!(KeySet::parse(file.as_bytes(), &[]).unwrap_err(), reason, "{file}");
    }
    let long = vec![b' '; keys::LONGEST_FILE + 1];
    assert!(KeySet::parse(&long, &[]).unwrap_err().starts_with("is longer than"));
}

#[test]
fn keys_verify_by_the_given_algorithms_only() {
    let file = json!({"keys": [a2_jwk(), a3_jwk()]}).to_string();
    let only = |name: &str| KeySet::parse(file.as_bytes(), &[Algorithm::named(name).unwrap()]);
    let mut verifier = verifier(&[secret_jwk()]);
    verifier.sources[0].keys = Rc::new(only("PS256").unwrap());
    assert_eq!(verifier.verify(a2_token().as_bytes()), Err(Rejection::Key));
    verifier.sources[0].keys = Rc::new(only("RS256").unwrap());
    assert_eq!(verifier.verify(a2_token().as_bytes()).map(drop), Ok(()));
    assert_eq!(verifier.verify(a3_token().as_bytes()), Err(Rejection::Key));
    assert_eq!(only("EdDSA").unwrap_err(), "has no key for the given algorithms");
    // A key that names its algorithm has no other.
    let mut bound = a2_jwk();
    bound["alg"] = json!("PS512");
    verifier.sources[0].keys = keys(&[bound]);
    assert_eq!(verifier.verify(a2_token().as_bytes()), Err(Rejection::Key));
}

#[test]
fn a_fresh_pair_of_each_curve_signs_what_is_verified() {
    let random = rand::SystemRandom::new();
    let document = ring_signature::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let pair = ring_signature::Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key())});
    let signed = format!("{}.{}", encode(r#"{"alg":"EdDSA"}"#), encode(r#"{"sub":"42"}"#));
    let text = format!("{signed}.{}", encode(pair.sign(signed.as_bytes())));
    let token = judge(&verifier(&[jwk]), &text).unwrap();
    assert_eq!(token.subject.as_deref(), Some("42"));
}

#[test]
fn reasons_have_names_of_their_own() {
    let names: std::collections::HashSet<_> = Rejection::ALL.iter().map(|rejection| rejection.name()).collect();
    let texts: std::collections::HashSet<_> = Rejection::ALL.iter().map(|rejection| rejection.explain()).collect();
    assert_eq!((names.len(), texts.len()), (15, 15));
}

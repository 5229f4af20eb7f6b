"""Amendments of the charter at members in one process: drafted, signed, approved and put in force."""

from protocol.charter import Charter
from protocol.records import Amend, Kind, RecordDraft, charter_scope, sign_record
from scripts.benchmarks.federation_in_memory import exchange


def sign_amendment(cast, member, changed, without=(), *, are_keys_fresh=True, speakers=()):
    """The next version as `member` drafts it: `changed` by number, and fresh vote keys of all `speakers`."""
    before = member.replica.ledger.charter
    fresh = {speaker.number: speaker.signing.get_fresh_vote_key() for speaker in speakers} if are_keys_fresh else {}
    chosen = {**before.members, **changed}
    chosen = {number: chosen[number] for number in sorted(chosen) if number not in without}
    renewed = tuple(
        it._replace(vote_key=fresh[number]) if number in fresh and number not in changed else it
        for number, it in chosen.items()
    )
    fields = before.fields._replace(version=before.version + 1, prev=before.id, members=renewed)
    scope = charter_scope(cast.federation)
    head = member.replica.ledger.heads.get(scope)
    key = cast.member_keys[member.number]
    signer = key.public_key().public_bytes_raw()
    body = Amend(Charter(fields, cast.federation).encoded)
    draft = RecordDraft(Kind.AMEND, 1, scope, before.version, head.record if head else b"", body, (signer,))
    return sign_record(cast.federation, draft, [key])


async def put_in_force(members, amendment, voters):
    await members[0].submit(amendment.encoded)
    for voter in voters:
        await voter.approve(amendment.id)
    await exchange(members)
    version = amendment.sequence + 1
    assert {member.replica.version for member in members} == {version}
    return version

# pragma version 0.4.3
"""
@title Odd token
@notice A token that misbehaves as it is told: keeps a fee, answers false, pays too much, freezes an
        account, or calls back into its victim while it moves.
"""

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
fee: public(uint256)
gift: public(uint256)
lies: public(bool)
frozen: public(HashMap[address, bool])
victim: public(address)
attack: public(Bytes[1024])
caught: public(Bytes[264])


@external
def mint(to: address, amount: uint256):
    self.balanceOf[to] += amount


@external
def approve(spender: address, amount: uint256):
    self.allowance[msg.sender][spender] = amount


@external
def set_fee(fee: uint256):
    self.fee = fee


@external
def set_gift(gift: uint256):
    self.gift = gift


@external
def set_lies(lies: bool):
    self.lies = lies


@external
def set_frozen(account: address, frozen: bool):
    self.frozen[account] = frozen


@external
def set_attack(victim: address, attack: Bytes[1024]):
    self.victim = victim
    self.attack = attack
    self.caught = b""


@external
def transfer(to: address, amount: uint256) -> bool:
    if self.lies:
        return False
    self._strike()
    assert not self.frozen[to], "odd: frozen"
    self.balanceOf[msg.sender] -= amount
    self.balanceOf[to] += amount - self.fee
    return True


@external
def transferFrom(sender: address, to: address, amount: uint256) -> bool:
    if self.lies:
        return False
    self._strike()
    self.balanceOf[sender] -= amount
    self.balanceOf[to] += amount + self.gift - self.fee
    return True


@internal
def _strike():
    if self.victim == empty(address):
        return
    success: bool = False
    answer: Bytes[256] = b""
    success, answer = raw_call(
        self.victim, self.attack, max_outsize=256, revert_on_failure=False
    )
    # Left for the test to see: a locked door gives no reason, any other refusal does.
    if success:
        self.caught = b"let in"
    elif len(answer) == 0:
        self.caught = b"locked"
    else:
        self.caught = concat(b"refused ", answer)
